//! Secrets in files, read again when the files change: a Kubernetes secret mount swaps a symbolic link, an
//! operator moves a file. What can't be read keeps its last value, and is said once; but a file that stays away, or
//! empty, while another one of the same entry can be read, was taken away on purpose, and its secret is good no more.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
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
/// After so many looks a file that is not there is taken for one that shall not be there.
const WITHDRAWN_AFTER: u32 = 5;

/// Files that hold the secrets of one entry of `auth`.
#[derive(Debug)]
pub struct SecretFiles {
    /// For messages: which route's.
    owner: String,
    scheme: Scheme,
    paths: Vec<PathBuf>,
    /// What is known of each.
    known: Mutex<Vec<Known>>,
    present: watch::Sender<Arc<[Secret]>>,
}

/// What is known of a file.
#[derive(Debug)]
struct Known {
    /// What it held, if that still is good.
    secret: Option<Secret>,
    /// Whether it was bad when last looked at.
    failing: bool,
    /// Looks in which it was not there, beside another one that was.
    absent: u32,
}

/// A file that holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("secret file {path:?}: {problem}")]
pub struct SecretError {
    path: PathBuf,
    problem: io::Error,
}

impl SecretError {
    /// Whether there is no file, or nothing in it.
    fn is_absence(&self) -> bool {
        matches!(self.problem.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
    }
}

impl SecretFiles {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// The first file that can't be read, is empty, or holds no secret of the scheme.
    pub fn open(owner: String, scheme: Scheme, paths: Vec<PathBuf>) -> Result<Self, SecretError> {
        let secrets = paths.iter().map(|path| read(&scheme, path)).collect::<Result<Arc<[_]>, _>>()?;
        let known = secrets.iter().map(|secret| Known { secret: Some(secret.clone()), failing: false, absent: 0 });
        let known = Mutex::new(known.collect());
        Ok(Self { owner, scheme, paths, known, present: watch::Sender::new(secrets) })
    }

    /// What holds at the moment, kept up to date by [`follow`].
    #[must_use]
    pub fn secrets(&self) -> Secrets {
        self.present.subscribe()
    }

    /// Looks at the files; what can't be read stays as it was, for a while or for good.
    fn look(&self) {
        let before = Arc::clone(&self.present.borrow());
        let read: Vec<_> = self.paths.iter().map(|path| read(&self.scheme, path)).collect();
        let any = read.iter().any(Result::is_ok);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (known, read) in known.iter_mut().zip(read) {
            let error = match read {
                Ok(secret) => {
                    *known = Known { secret: Some(secret), failing: false, absent: 0 };
                    continue;
                }
                Err(error) => error,
            };
            known.absent = if any && error.is_absence() { known.absent + 1 } else { 0 };
            if known.absent >= WITHDRAWN_AFTER && known.secret.take().is_some() {
                warn!(route = self.owner, %error, "a secret was withdrawn: its file is gone or empty, and another one is there; take it out of secret_files too, for no start gets past it");
            } else if !std::mem::replace(&mut known.failing, true) {
                warn!(route = self.owner, %error, "a secret can't be read again; the one read before still holds");
            }
        }
        let now: Arc<[Secret]> = known.iter().filter_map(|known| known.secret.clone()).collect();
        drop(known);
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
        "" => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")),
        secret => Ok(secret.to_owned()),
    }
}

fn read(scheme: &Scheme, path: &Path) -> Result<Secret, SecretError> {
    let wrong = |problem| SecretError { path: path.to_owned(), problem };
    let secret = Secret::from(text(path).map_err(wrong)?.as_str());
    scheme.check(&secret).map_err(|problem| wrong(io::Error::other(problem)))?;
    Ok(secret)
}
