//! Secrets in files, read again when the files change: a Kubernetes secret mount swaps a symbolic link, an operator
//! moves a file. Knows nothing of what a secret is for.
//!
//! A file that can't be read keeps its last secret. Deleting or emptying a file revokes its secret within seconds, if
//! another one remains. One that is missing at the start is taken in as soon as it is there.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::{shutdown::Phase, supervision::survived};

/// Between two looks at the files. They are small and few; looking at contents misses no change, whatever a
/// file system says of times.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After so many looks a file that is not there is taken for one that shall not be there.
const WITHDRAWN_AFTER: u32 = 5;

/// A secret that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(***)")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

/// Those that hold at the moment, the present one and the ones it replaced.
pub type Secrets = watch::Receiver<Arc<[Secret]>>;

/// No secret at all: no signature is good.
#[must_use]
pub fn none() -> Secrets {
    watch::Sender::new(Arc::from([])).subscribe()
}

/// Says what is wrong with a secret, without showing it.
type Fitness = Box<dyn Fn(&Secret) -> Result<(), &'static str> + Send + Sync>;

/// Files that hold the secrets of one owner; any of them is good.
pub struct SecretFiles {
    /// For messages.
    owner: String,
    fits: Fitness,
    paths: Vec<PathBuf>,
    /// What is known of each.
    known: Mutex<Vec<KnownSecrets>>,
    present: watch::Sender<Arc<[Secret]>>,
}

impl fmt::Debug for SecretFiles {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SecretFiles").field("owner", &self.owner).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// What is known of a file.
#[derive(Debug)]
struct KnownSecrets {
    /// What it held, if that still is good.
    secret: Option<Secret>,
    /// Whether it was bad when last looked at.
    failing: bool,
    /// Looks in which it was not there, beside another one that was.
    absent: u32,
}

impl KnownSecrets {
    const fn good(secret: Secret) -> Self {
        Self { secret: Some(secret), failing: false, absent: 0 }
    }

    /// Never there so far.
    const fn missing() -> Self {
        Self { secret: None, failing: true, absent: WITHDRAWN_AFTER }
    }
}

/// A file that holds no secret.
#[derive(Debug, thiserror::Error)]
#[error("secret file {path:?}: {problem}")]
pub struct SecretError {
    path: PathBuf,
    #[source]
    problem: io::Error,
}

impl SecretError {
    /// Whether there is no file, or nothing in it.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self.problem.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
    }
}

impl SecretFiles {
    /// Reads the files for the first time. Those that are missing or empty beside a good one are named in the other
    /// part of the answer.
    ///
    /// # Errors
    /// Each file that can't be read or holds no fitting secret; missing and empty ones only if none is good.
    pub fn open(
        owner: String,
        paths: Vec<PathBuf>,
        fits: impl Fn(&Secret) -> Result<(), &'static str> + Send + Sync + 'static,
    ) -> Result<(Self, Vec<SecretError>), Vec<SecretError>> {
        let (mut known, mut absent, mut bad) = (Vec::new(), Vec::new(), Vec::new());
        for path in &paths {
            match read(&fits, path) {
                Ok(secret) => known.push(KnownSecrets::good(secret)),
                Err(error) => {
                    known.push(KnownSecrets::missing());
                    if error.is_absence() { absent.push(error) } else { bad.push(error) }
                }
            }
        }
        let secrets: Arc<[Secret]> = known.iter().filter_map(|known| known.secret.clone()).collect();
        if secrets.is_empty() {
            bad.append(&mut absent);
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        let (known, present) = (Mutex::new(known), watch::Sender::new(secrets));
        Ok((Self { owner, fits: Box::new(fits), paths, known, present }, absent))
    }

    /// What holds at the moment, kept up to date by [`follow`].
    #[must_use]
    pub fn secrets(&self) -> Secrets {
        self.present.subscribe()
    }

    /// Looks at the files; what can't be read stays as it was, for a while or for good.
    fn look(&self) {
        let before = Arc::clone(&self.present.borrow());
        let read: Vec<_> = self.paths.iter().map(|path| read(&self.fits, path)).collect();
        let any = read.iter().any(Result::is_ok);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (known, read) in known.iter_mut().zip(read) {
            let error = match read {
                Ok(secret) => {
                    *known = KnownSecrets::good(secret);
                    continue;
                }
                Err(error) => error,
            };
            if known.absent > 0 && !error.is_absence() {
                // It was missing, and now something bad is there.
                known.failing = false;
            }
            known.absent = if any && error.is_absence() { known.absent.saturating_add(1) } else { 0 };
            if known.absent >= WITHDRAWN_AFTER && known.secret.take().is_some() {
                warn!(owner = self.owner, %error, "a secret was revoked: its file is missing or empty, and another one is good");
            } else if !std::mem::replace(&mut known.failing, true) {
                let rest = if known.secret.is_some() { "the one read before still holds" } else { "none of it holds" };
                warn!(owner = self.owner, %error, "a secret can't be read; {rest}");
            }
        }
        let now: Arc<[Secret]> = known.iter().filter_map(|known| known.secret.clone()).collect();
        drop(known);
        if now != before {
            info!(owner = self.owner, "secrets have changed; the new ones hold from now on");
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

fn read(fits: &dyn Fn(&Secret) -> Result<(), &'static str>, path: &Path) -> Result<Secret, SecretError> {
    let wrong = |problem| SecretError { path: path.to_owned(), problem };
    let secret = Secret::from(text(path).map_err(wrong)?.as_str());
    fits(&secret).map_err(|problem| wrong(io::Error::other(problem)))?;
    Ok(secret)
}
