//! Programs, directories, and sockets whose paths are short enough.

use std::cmp::Reverse;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use xxhash_rust::xxh3::xxh3_64;

/// Where `scripts/setup` puts servers that no package manager could install, relative to the
/// working directory.
const DOWNLOADED: &str = ".tallyman/servers";

/// Names another Redis (or Valkey) than the installed one, to test with it.
const TEST_REDIS: &str = "TALLYMAN_TEST_REDIS";

/// The longest path of a unix socket on every known system: 108 bytes on Linux, 104 on others,
/// including a final zero.
const SOCKET_PATH_MAX: usize = 103;

/// Escaped in the path of a URL.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// The Redis (or Valkey) that `TALLYMAN_TEST_REDIS` names, else the installed one.
pub(crate) fn find_redis() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os(TEST_REDIS).filter(|path| !path.is_empty()) {
        let program = std::path::absolute(program)?;
        if !program.is_file() {
            bail!("{TEST_REDIS} names no file: {}", program.display());
        }
        return Ok(program);
    }
    find_program(&["redis-server", "valkey-server"]).context(
        "neither redis-server nor valkey-server is installed; `scripts/setup` (part of `make dev`) installs one",
    )
}

/// The first of these programs that is installed.
fn find_program(names: &[&str]) -> Option<PathBuf> {
    let dirs = program_dirs();
    let paths = names
        .iter()
        .flat_map(|name| dirs.iter().map(move |dir| dir.join(name)));
    paths.into_iter().find(|program| program.is_file())
}

/// The directory of the installed Postgres' programs. Debian keeps them out of the PATH, in one
/// directory per version.
pub(crate) fn find_postgres() -> Option<PathBuf> {
    let version = |dir: &Path| dir.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let packages = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut packages: Vec<PathBuf> = packages.map(|entry| entry.path().join("bin")).collect();
    packages.sort_by_key(|dir| Reverse(version(dir)));
    let complete = |dir: &PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    program_dirs().into_iter().chain(packages).find(complete)
}

/// Where to search programs. Absolute, because servers start in another directory.
fn program_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path)
        .filter(|dir| !dir.as_os_str().is_empty())
        .chain([PathBuf::from(DOWNLOADED)]);
    dirs.filter_map(|dir| std::path::absolute(dir).ok())
        .collect()
}

/// Creates `dir` if missing, and returns its canonical path.
pub(crate) fn create_dir(dir: &Path, mode: u32) -> Result<PathBuf> {
    let created = DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .and_then(|()| dir.canonicalize());
    created.with_context(|| format!("cannot create {}", dir.display()))
}

/// A path to a directory that is short enough for the address of a socket in it. A deep directory is
/// reached through a symbolic link that lives as long as this value; the server itself does not need the link,
/// because it names its socket relative to the directory.
#[derive(Debug)]
pub(crate) struct SocketDir {
    path: PathBuf,
    linked: bool,
}

impl SocketDir {
    pub(crate) fn new(dir: &Path, socket: &str) -> Result<Self> {
        if dir.join(socket).as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(Self {
                path: dir.to_owned(),
                linked: false,
            });
        }
        let path = Path::new("/tmp").join(unique_name(dir));
        // Never follows a link that another user created: then symlink() fails.
        ignore_missing(fs::remove_file(&path))
            .and_then(|()| symlink(dir, &path))
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, linked: true })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketDir {
    fn drop(&mut self) {
        if self.linked {
            // A leftover link is harmless: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A short name for a directory, the same at each start.
pub(crate) fn unique_name(dir: &Path) -> String {
    format!("tallyman-{:016x}", xxh3_64(dir.as_os_str().as_bytes()))
}

/// A path as part of a URL.
pub(crate) fn percent_encoded(path: &Path) -> String {
    percent_encode(path.as_os_str().as_bytes(), ESCAPED).to_string()
}

/// Succeeds also where there was nothing to remove.
pub(crate) fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
