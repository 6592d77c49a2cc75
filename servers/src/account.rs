//! The user that Postgres runs as when this process is root's: Postgres refuses to run as root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::process::Command;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

impl Account {
    /// The owner for a new data directory: `postgres`, else `nobody`; none unless this process is root's.
    pub(crate) fn unprivileged() -> Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let account = |name| {
            let mut lines = accounts.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let mut fields = line.split(':').skip(1).map(str::parse);
            Some(Self {
                user: fields.next()?.ok()?,
                group: fields.next()?.ok()?,
            })
        };
        account("postgres")
            .or_else(|| account("nobody"))
            .map(Some)
            .context("Postgres refuses to run as root and there is no user `nobody`")
    }

    /// The owner of an existing data directory; none unless this process is root's.
    pub(crate) fn owner(data: &Path) -> Result<Option<Self>> {
        if !is_root() {
            return Ok(None);
        }
        let metadata =
            fs::metadata(data).with_context(|| format!("cannot open {}", data.display()))?;
        Ok(Some(Self {
            user: metadata.uid(),
            group: metadata.gid(),
        }))
    }

    /// Whether this user may search `dir` and all directories above it.
    pub(crate) fn can_reach(self, dir: &Path) -> Result<bool> {
        for ancestor in dir.ancestors() {
            let metadata = fs::metadata(ancestor)
                .with_context(|| format!("cannot open {}", ancestor.display()))?;
            let search = match () {
                () if metadata.uid() == self.user => 0o100,
                () if metadata.gid() == self.group => 0o010,
                () => 0o001,
            };
            if metadata.mode() & search == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes a command run as this user.
    pub(crate) fn run(self, command: &mut Command) {
        command.uid(self.user).gid(self.group);
    }
}

/// False where there is no `/proc`: a developer's laptop.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
