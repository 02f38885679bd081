//! One question to another node: dial, say it, hear the answer. A worker of its own, so that a peer that is not there
//! holds up nobody.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::address::Address;
use crate::channel::{Channel, ReceiveBuffer};
use crate::clock::{Clock, Deadline, Wait};
use crate::ids::Term;
use crate::runtime::{Running, Runtime};
use crate::wire::message::Message;
use crate::worker::{Step, Stop, Worker};

/// Takes the answer, with the term of its frame. Whether another one is awaited.
pub(crate) type OnAnswer = Box<dyn FnMut(Term, &Message<'_>, &dyn Channel) -> Next + Send>;

/// What follows an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// Another answer is awaited.
    Await,
    /// The talk is over.
    Done,
}

/// What is said to whom.
pub(crate) struct Question {
    pub to: Address,
    pub term: Term,
    pub message: Message<'static>,
    /// When to give up.
    pub until: Deadline,
    /// `None` if no answer is awaited.
    pub on_answer: Option<OnAnswer>,
}

/// A question under way.
pub(crate) struct Asking {
    running: Arc<dyn Running>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    channel: Mutex<Option<Arc<dyn Channel>>>,
    ended: AtomicBool,
}

impl Asking {
    pub fn start(runtime: &Arc<dyn Runtime>, name: String, question: Question) -> Asking {
        let shared = Arc::new(Shared::default());
        let worker = Ask {
            runtime: Arc::clone(runtime),
            clock: runtime.clock(),
            question,
            shared: Arc::clone(&shared),
            channel: None,
            buffer: ReceiveBuffer::default(),
        };
        let ended = Arc::clone(&shared);
        let on_end = move |stop: &Stop| {
            ended.ended.store(true, Ordering::SeqCst);
            if let Stop::Failed(why) = stop {
                log::error!("asking another node failed: {why}");
            }
        };
        Asking { running: runtime.spawn(name, Box::new(worker), Vec::new(), Box::new(on_end)), shared }
    }

    pub fn has_ended(&self) -> bool {
        self.shared.ended.load(Ordering::SeqCst)
    }

    /// Ends it and waits for its thread.
    pub fn end(&self) {
        self.running.stop();
        if let Some(channel) = self.shared.channel.lock().take() {
            channel.close();
        }
        self.running.join();
    }
}

struct Ask {
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    question: Question,
    shared: Arc<Shared>,
    channel: Option<Arc<dyn Channel>>,
    buffer: ReceiveBuffer,
}

impl Ask {
    fn dial(&mut self, wait: Wait) -> Result<Step, Stop> {
        let dialled = self.runtime.dial(&self.question.to, wait.at_most(self.question.until));
        let Ok(Some(channel)) = dialled else { return Err(Stop::Done) };
        *self.shared.channel.lock() = Some(Arc::clone(&channel));
        let mut frame = Vec::new();
        self.question.message.encode(self.question.term, 0, &mut frame);
        let sent = channel.send(&[IoSlice::new(&frame)], Wait::Now);
        self.channel = Some(channel);
        if matches!(sent, Ok(true)) && self.question.on_answer.is_some() {
            return Ok(Step::Worked);
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<Step, Stop> {
        if let Some(channel) = self.channel.take() {
            channel.close();
        }
        *self.shared.channel.lock() = None;
        Err(Stop::Done)
    }
}

impl Worker for Ask {
    fn step(&mut self, wait: Wait) -> Result<Step, Stop> {
        let until = self.question.until;
        let Some(channel) = self.channel.clone() else { return self.dial(wait) };
        let mut buffer = std::mem::take(&mut self.buffer);
        let next = match channel.receive(&mut buffer, wait.at_most(until)) {
            Ok(Some(frame)) => match (Message::decode(frame), &mut self.question.on_answer) {
                (Ok((header, message)), Some(on_answer)) => on_answer(header.term, &message, &*channel),
                _ => Next::Done,
            },
            Ok(None) if self.clock.now() < until => {
                self.buffer = buffer;
                return Ok(Step::Idle { due: until });
            }
            Ok(None) | Err(_) => Next::Done,
        };
        self.buffer = buffer;
        match next {
            Next::Await => Ok(Step::Worked),
            Next::Done => self.finish(),
        }
    }
}
