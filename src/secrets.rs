//! Secrets in files, read again when the files change: a Kubernetes secret mount swaps a symbolic link, an
//! operator moves a file. What can't be read keeps its last value, and is said once.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    shutdown::Phase,
    signature::{Scheme, Secret, Secrets},
    supervision::survived,
};

/// Between two looks at the files. They are small and few; looking at contents misses no change, whatever a
/// file system says of times.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Files that hold the secrets of one entry of `auth`.
#[derive(Debug)]
pub struct SecretFiles {
    /// For messages: which route's.
    owner: String,
    scheme: Scheme,
    paths: Vec<PathBuf>,
    /// Which of them were bad when last looked at.
    failing: Vec<AtomicBool>,
    present: watch::Sender<Arc<[Secret]>>,
}

/// A file that holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("secret file {path:?}: {problem}")]
pub struct SecretError {
    path: PathBuf,
    problem: io::Error,
}

impl SecretFiles {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// The first file that can't be read, is empty, or holds no secret of the scheme.
    pub fn open(owner: String, scheme: Scheme, paths: Vec<PathBuf>) -> Result<Self, SecretError> {
        let secrets = paths.iter().map(|path| read(&scheme, path)).collect::<Result<Arc<[_]>, _>>()?;
        let failing = paths.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self { owner, scheme, paths, failing, present: watch::Sender::new(secrets) })
    }

    /// What holds at the moment, kept up to date by [`follow`].
    #[must_use]
    pub fn secrets(&self) -> Secrets {
        self.present.subscribe()
    }

    /// Looks at the files; what can't be read stays as it was.
    fn look(&self) {
        let before = Arc::clone(&self.present.borrow());
        let now: Arc<[Secret]> = self.paths.iter().zip(&self.failing).zip(before.iter()).map(|((path, failing), old)| {
            match read(&self.scheme, path) {
                Ok(secret) => {
                    failing.store(false, Ordering::Relaxed);
                    secret
                }
                Err(error) => {
                    if !failing.swap(true, Ordering::Relaxed) {
                        warn!(route = self.owner, %error, "a secret can't be read again; the one read before still holds");
                    }
                    old.clone()
                }
            }
        }).collect();
        if now != before {
            info!(
                route = self.owner,
                scheme = self.scheme.name(),
                "secrets have changed; the new ones hold from now on"
            );
            self.present.send_replace(now);
        }
    }
}

/// Keeps secrets up to date until the process closes.
pub async fn follow(files: Vec<SecretFiles>, mut phase: watch::Receiver<Phase>) {
    if files.is_empty() {
        return;
    }
    let files: Arc<[_]> = files.into();
    let work = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let files = Arc::clone(&files);
            let look = move || files.iter().for_each(|files| survived("the look at the secrets", || files.look()));
            // Fails only where the runtime ends.
            let _looked = tokio::task::spawn_blocking(look).await;
        }
    };
    tokio::select! {
        () = work => {}
        _closing = phase.wait_for(|phase| *phase == Phase::Closing) => {}
    }
}

/// What a secret file holds, without the line break at its end.
///
/// # Errors
/// If it can't be read, or holds nothing.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(io::Error::other("it is empty")),
        secret => Ok(secret.to_owned()),
    }
}

fn read(scheme: &Scheme, path: &Path) -> Result<Secret, SecretError> {
    let wrong = |problem| SecretError { path: path.to_owned(), problem };
    let secret = Secret::from(text(path).map_err(wrong)?.as_str());
    scheme.check(&secret).map_err(|problem| wrong(io::Error::other(problem)))?;
    Ok(secret)
}
