//! Real input for the demo: files as records, in an order that is the same every time.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The largest value of one record: longer files are cut into chunks of this size.
pub const CHUNK: usize = 64 << 10;

/// How much of the current directory is taken when no input is named.
pub const DEFAULT_LIMIT: u64 = 64 << 20;

/// A file or directory could not be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read {path}: {error}", path = path.display())]
pub struct InputError {
    path: PathBuf,
    error: io::Error,
}

/// One piece of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The path below the input's root, `#`, and the number of the chunk.
    pub key: Vec<u8>,
    /// The bytes. An empty file is one empty piece.
    pub value: Vec<u8>,
}

/// The files that an input consists of.
#[derive(Debug)]
pub struct Input {
    /// Path and key of each file, sorted by key.
    files: Vec<(PathBuf, Vec<u8>)>,
    /// Bytes in all files, as of the scan.
    pub bytes: u64,
    /// Files left out because they would have passed the limit.
    pub left_out: usize,
}

impl Input {
    /// Finds the files at `root`, a file or a directory. Hidden files and directories, `target` directories and symbolic
    /// links are not followed. Files that would take the total over `limit` are left out.
    ///
    /// # Errors
    /// [`InputError`] for the first file or directory that can't be looked at.
    pub fn scan(root: &Path, limit: Option<u64>) -> Result<Input, InputError> {
        let mut input = Input { files: Vec::new(), bytes: 0, left_out: 0 };
        let limit = limit.unwrap_or(u64::MAX);
        // Follows a link, because it was named by the user.
        let about = fs::metadata(root).map_err(|error| InputError { path: root.into(), error })?;
        if about.is_dir() {
            input.walk(root, &[], limit)?;
        } else {
            let key = root.file_name().map_or(&b"input"[..], OsStrExt::as_bytes);
            input.take(root.into(), key.to_vec(), about.len(), limit);
        }
        input.files.sort_by(|a, b| a.1.cmp(&b.1));
        Ok(input)
    }

    fn walk(&mut self, dir: &Path, prefix: &[u8], limit: u64) -> Result<(), InputError> {
        let failed = |error| InputError { path: dir.into(), error };
        let mut items: Vec<_> =
            fs::read_dir(dir).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
        items.sort_by_key(fs::DirEntry::file_name);
        for item in items {
            let (name, path) = (item.file_name(), item.path());
            let about = item.metadata().map_err(|error| InputError { path: path.clone(), error })?;
            if name.as_bytes().starts_with(b".") || (about.is_dir() && name == "target") {
                continue;
            }
            let key = [prefix, name.as_bytes()].concat();
            if about.is_dir() {
                self.walk(&path, &[&key[..], b"/"].concat(), limit)?;
            } else if about.is_file() {
                self.take(path, key, about.len(), limit);
            }
        }
        Ok(())
    }

    fn take(&mut self, path: PathBuf, key: Vec<u8>, len: u64, limit: u64) {
        match self.bytes.checked_add(len) {
            Some(total) if total <= limit => {
                self.bytes = total;
                self.files.push((path, key));
            }
            _ => self.left_out += 1,
        }
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The pieces of all files, read as they are asked for: no more than one is in memory.
    pub fn pieces(&self) -> impl Iterator<Item = Result<Piece, InputError>> + '_ {
        self.files.iter().flat_map(|(path, key)| {
            let mut file = FilePieces { path, key, file: None, next: 0, done: false };
            std::iter::from_fn(move || file.next())
        })
    }
}

struct FilePieces<'a> {
    path: &'a Path,
    key: &'a [u8],
    file: Option<File>,
    next: u32,
    done: bool,
}

impl FilePieces<'_> {
    fn next(&mut self) -> Option<Result<Piece, InputError>> {
        if self.done {
            return None;
        }
        let value = match self.chunk() {
            Ok(value) => value,
            Err(error) => {
                self.done = true;
                return Some(Err(InputError { path: self.path.into(), error }));
            }
        };
        self.done = value.len() < CHUNK;
        if value.is_empty() && self.next > 0 {
            return None;
        }
        let key = [self.key, format!("#{}", self.next).as_bytes()].concat();
        self.next += 1;
        Some(Ok(Piece { key, value }))
    }

    fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(File::open(self.path)?),
        };
        let mut value = Vec::new();
        file.take(CHUNK as u64).read_to_end(&mut value)?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(input: &Input) -> Vec<String> {
        input.pieces().map(|piece| String::from_utf8(piece.unwrap().key).unwrap()).collect()
    }

    #[test]
    fn takes_what_a_person_would_call_the_files_and_cuts_long_ones() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for sub in [".git", "target", "b/target", "b/c"] {
            fs::create_dir_all(at(sub)).unwrap();
        }
        for (name, len) in [
            ("a", 0),
            ("b.txt", CHUNK),
            ("b/c/long", CHUNK * 2 + 1),
            ("b/target/no", 1),
            (".git/no", 1),
            ("target/no", 1),
            (".hidden", 1),
        ] {
            fs::write(at(name), vec![7; len]).unwrap();
        }
        std::os::unix::fs::symlink(at("a"), at("link")).unwrap();

        let input = Input::scan(dir.path(), None).unwrap();
        assert_eq!(keys(&input), ["a#0", "b.txt#0", "b/c/long#0", "b/c/long#1", "b/c/long#2"]);
        assert_eq!((input.files(), input.bytes, input.left_out), (3, CHUNK as u64 * 3 + 1, 0));
        let again = Input::scan(dir.path(), None).unwrap();
        assert!(input.pieces().map(Result::unwrap).eq(again.pieces().map(Result::unwrap)));
        assert_eq!(input.pieces().map(|piece| piece.unwrap().value.len() as u64).sum::<u64>(), input.bytes);
    }

    #[test]
    fn a_limit_leaves_out_whole_files_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        for (name, len) in [("1", 10), ("2", 100), ("3", 10)] {
            fs::write(dir.path().join(name), vec![0; len]).unwrap();
        }
        let input = Input::scan(dir.path(), Some(50)).unwrap();
        assert_eq!(keys(&input), ["1#0", "3#0"]);
        assert_eq!((input.bytes, input.left_out), (20, 1));
    }

    #[test]
    fn one_file_is_an_input_and_a_missing_one_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one"), b"1").unwrap();
        assert_eq!(keys(&Input::scan(&dir.path().join("one"), None).unwrap()), ["one#0"]);
        let error = Input::scan(&dir.path().join("none"), None).unwrap_err();
        assert!(error.to_string().contains("none: No such file"), "{error}");
    }
}
