//! Work that goes on after its caller is dropped.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

/// A future that, dropped before its end, goes on in a task of its own. Awaited to its end it costs no task.
#[derive(Debug)]
pub(crate) struct DetachOnDrop<F>(Option<Pin<Box<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send;

impl<F> DetachOnDrop<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    /// Boxes the work, which stays where it is when it is detached.
    pub(crate) fn new(work: F) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl<F> Future for DetachOnDrop<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.0 else { panic!("polled after its end") };
        let outcome = work.as_mut().poll(context);
        if outcome.is_ready() {
            self.0 = None;
        }
        outcome
    }
}

impl<F> Drop for DetachOnDrop<F>
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn drop(&mut self) {
        // Without a runtime the process is at its end, and nothing can go on.
        if let Some(rest) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn goes_on_when_nobody_waits_any_more() {
        let (go, told) = oneshot::channel::<()>();
        let (done, ended) = oneshot::channel();
        let mut work = Box::pin(DetachOnDrop::new(async move {
            told.await.expect("somebody says go");
            done.send(()).expect("somebody listens");
        }));
        assert!(futures_util::poll!(&mut work).is_pending());
        drop(work);
        go.send(()).expect("the work goes on");
        ended.await.expect("the work came to its end");
    }
}
