//! The member list in force, shared by all who ask who belongs to the group.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::members::Members;

/// The member list in force: that of the last membership entry of the log, committed or not. Any thread may call any
/// method; none blocks.
#[derive(Debug)]
pub struct Roll(RwLock<Arc<Members>>);

impl Roll {
    /// A roll with this list.
    pub fn new(members: Members) -> Roll {
        Roll(RwLock::new(Arc::new(members)))
    }

    /// The list.
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.0.read())
    }

    /// Puts another list in force.
    pub fn set(&self, members: Arc<Members>) {
        *self.0.write() = members;
    }
}
