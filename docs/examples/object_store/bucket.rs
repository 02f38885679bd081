//! An archive in an object store with uploads in parts, and an imitation of such a store.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate::archive::{Archive, ArchiveError, Object, is_object_name};

/// Bytes of a part: what one `put` holds in memory. Real stores ask for 5 MiB at least.
const PART: u64 = 5 << 20;

/// An archive in a bucket.
pub struct BucketArchive {
    bucket: Bucket,
}

impl BucketArchive {
    /// The archive that fills this bucket. A group has one of its own, or a prefix of its own in front of each name.
    pub fn new(bucket: Bucket) -> BucketArchive {
        BucketArchive { bucket }
    }

    /// Sends it all, part by part.
    fn upload(&self, upload: u64, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError> {
        loop {
            let mut part = Vec::new();
            from.take(PART).read_to_end(&mut part).map_err(ArchiveError::io("read what goes into", name))?;
            let last = (part.len() as u64) < PART;
            self.bucket.upload_part(upload, part).map_err(ArchiveError::io("write", name))?;
            if last {
                return Ok(());
            }
        }
    }
}

impl Archive for BucketArchive {
    fn put(&self, name: &str, from: &mut dyn Read) -> Result<(), ArchiveError> {
        if !is_object_name(name) {
            return Err(ArchiveError::Name(name.to_owned()));
        }
        let upload = self.bucket.begin_upload(name);
        let sent = self.upload(upload, name, from);
        if sent.is_err() {
            // What was sent is never seen; a real store is told to drop such parts after some days as well.
            self.bucket.abort_upload(upload);
            return sent;
        }
        // Here it appears, whole.
        self.bucket.complete_upload(upload).map_err(ArchiveError::io("complete", name))
    }

    fn open(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError> {
        if !is_object_name(name) {
            return Err(ArchiveError::Name(name.to_owned()));
        }
        // `is_missing` goes by the kind: the client's own error for a missing key has to become `NotFound`.
        Ok(Box::new(self.bucket.download(name).map_err(ArchiveError::io("open", name))?))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, ArchiveError> {
        let all = self.bucket.list(prefix).into_iter();
        Ok(all
            .map(|(name, len)| Object { name, len })
            .filter(|object| is_object_name(&object.name))
            .collect())
    }

    fn remove(&self, name: &str) -> Result<(), ArchiveError> {
        self.bucket.delete(name);
        Ok(())
    }
}

/// An imitation of an object store's client: objects appear whole when an upload is completed, and lists are never late.
#[derive(Default)]
pub struct Bucket(Mutex<Contents>);

#[derive(Default)]
struct Contents {
    objects: BTreeMap<String, Arc<[u8]>>,
    uploads: BTreeMap<u64, (String, Vec<u8>)>,
    next: u64,
}

impl Bucket {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_upload(&self, key: &str) -> u64 {
        let mut contents = self.contents();
        contents.next += 1;
        let upload = contents.next;
        contents.uploads.insert(upload, (key.to_owned(), Vec::new()));
        upload
    }

    fn upload_part(&self, upload: u64, mut part: Vec<u8>) -> io::Result<()> {
        let mut contents = self.contents();
        let (_, parts) = contents.uploads.get_mut(&upload).ok_or(io::ErrorKind::NotFound)?;
        parts.append(&mut part);
        Ok(())
    }

    fn complete_upload(&self, upload: u64) -> io::Result<()> {
        let mut contents = self.contents();
        let (key, parts) = contents.uploads.remove(&upload).ok_or(io::ErrorKind::NotFound)?;
        contents.objects.insert(key, parts.into());
        Ok(())
    }

    fn abort_upload(&self, upload: u64) {
        self.contents().uploads.remove(&upload);
    }

    fn download(&self, key: &str) -> io::Result<Cursor<Arc<[u8]>>> {
        let contents = self.contents();
        let object = contents.objects.get(key).ok_or(io::ErrorKind::NotFound)?;
        Ok(Cursor::new(Arc::clone(object)))
    }

    fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        let contents = self.contents();
        let objects = contents.objects.iter().filter(|(key, _)| key.starts_with(prefix));
        objects.map(|(key, bytes)| (key.clone(), bytes.len() as u64)).collect()
    }

    fn delete(&self, key: &str) {
        self.contents().objects.remove(key);
    }
}
