//! Every archive keeps the same contract: what `Archive` promises, of a directory and of the object store of
//! docs/examples/object_store. Whoever writes another one adds a line to `archives`.

#[path = "../docs/examples/object_store/bucket.rs"]
mod bucket;

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

use bucket::{Bucket, BucketArchive};
use quorate::archive::{Archive, ArchiveError, DirArchive};
use quorate::disk::RealDisk;

/// One of each kind, empty, by the name of its kind.
fn archives(dir: &Path) -> Vec<(&'static str, Arc<dyn Archive>)> {
    vec![
        ("directory", Arc::new(DirArchive::new(Arc::new(RealDisk), dir.join("archive"), 1))),
        ("bucket", Arc::new(BucketArchive::new(Bucket::default()))),
    ]
}

fn each(claim: impl Fn(&'static str, Arc<dyn Archive>)) {
    let dir = tempfile::tempdir().unwrap();
    for (kind, archive) in archives(dir.path()) {
        claim(kind, archive);
    }
}

fn put(archive: &dyn Archive, name: &str, bytes: &[u8]) {
    archive.put(name, &mut &*bytes).unwrap();
}

fn read(archive: &dyn Archive, name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    archive.open(name).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn listed(archive: &dyn Archive, prefix: &str) -> Vec<(String, u64)> {
    archive.list(prefix).unwrap().into_iter().map(|object| (object.name, object.len)).collect()
}

/// Bytes, and then an error.
struct Breaks(usize);

impl Read for Breaks {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = into.len().min(self.0);
        into[..len].fill(b'x');
        self.0 -= len;
        Ok(len)
    }
}

#[test]
fn what_is_put_is_read_and_listed_until_it_is_removed() {
    each(|kind, archive| {
        assert_eq!(listed(&*archive, ""), [], "{kind}: nothing was put yet");
        // Also nothing at all, and more than one part of an upload.
        let large: Vec<u8> =
            (0..11_000_000u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        put(&*archive, "log/2", &large);
        put(&*archive, "log/1", b"");
        put(&*archive, "base/1-2/items/0", b"zero");
        assert_eq!(read(&*archive, "log/2"), large, "{kind}");
        assert_eq!(read(&*archive, "log/1"), b"", "{kind}");
        let all = [("base/1-2/items/0", 4), ("log/1", 0), ("log/2", large.len() as u64)];
        let all = all.map(|(name, len)| (name.to_owned(), len));
        assert_eq!(listed(&*archive, ""), all, "{kind}: by name");
        assert_eq!(listed(&*archive, "log/"), all[1..], "{kind}");
        assert_eq!(listed(&*archive, "base/1-"), all[..1], "{kind}: a prefix may end within a part");
        assert_eq!(listed(&*archive, "base/2"), [], "{kind}");
        archive.remove("log/1").unwrap();
        archive.remove("log/1").unwrap();
        assert_eq!(listed(&*archive, "log/"), all[2..], "{kind}");
        let gone = archive.open("log/1").err().unwrap();
        assert!(gone.is_missing(), "{kind}: {gone}");
    });
}

#[test]
fn a_put_that_fails_leaves_what_was_there() {
    each(|kind, archive| {
        for len in [0, 1000, 6_000_000] {
            archive.put("log/new", &mut Breaks(len)).unwrap_err();
            assert_eq!(listed(&*archive, ""), [], "{kind}: {len}");
        }
        put(&*archive, "log/old", b"old");
        for len in [0, 1000, 6_000_000] {
            archive.put("log/old", &mut Breaks(len)).unwrap_err();
            assert_eq!(read(&*archive, "log/old"), b"old", "{kind}: {len}");
        }
        put(&*archive, "log/old", b"new");
        assert_eq!(read(&*archive, "log/old"), b"new", "{kind}: in place of what has that name");
    });
}

#[test]
fn who_reads_while_others_put_sees_whole_objects() {
    each(|kind, archive| {
        let both = [vec![b'a'; 700_000], vec![b'b'; 300_000]];
        put(&*archive, "log/1", &both[0]);
        let begin = Barrier::new(3);
        thread::scope(|scope| {
            for bytes in &both {
                scope.spawn(|| {
                    begin.wait();
                    (0..20).for_each(|_| put(&*archive, "log/1", bytes));
                });
            }
            begin.wait();
            for _ in 0..40 {
                let found = read(&*archive, "log/1");
                assert!(both.contains(&found), "{kind}: {} bytes", found.len());
                assert_eq!(archive.list("log/").unwrap().len(), 1, "{kind}");
            }
        });
    });
}

#[test]
fn names_that_no_object_has_are_refused() {
    each(|kind, archive| {
        for name in ["", "/log", "log/", "log//1", "../log", "log/.1", "log/a b", "log/\u{e4}"] {
            let refused = archive.put(name, &mut &b"x"[..]).unwrap_err();
            assert!(matches!(&refused, ArchiveError::Name(refused) if refused == name), "{kind}: {refused}");
            assert!(archive.open(name).is_err(), "{kind}: {name:?}");
        }
        assert_eq!(listed(&*archive, ""), [], "{kind}");
    });
}
