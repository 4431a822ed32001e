//! Redis servers of which one takes over from another, twice under load, with NATS up and with NATS down.

use super::{
    crm::{Crm, PATIENT},
    rig::{Report, Rig, demand},
};

/// Redis servers, and hookgate.
pub(super) trait Scene {
    /// What happens to the primary.
    type Fault: Copy;

    fn rig(&mut self) -> &mut Rig;

    /// Another server becomes the primary. Returns when the old one follows.
    async fn strike(&mut self, fault: Self::Fault, crm: &Crm);

    async fn verdict(self, crm: Crm) -> Report;
}

pub(super) async fn with_nats<S: Scene>(mut scene: S, fault: S::Fault) -> Report {
    let crm = scene.rig().load(PATIENT);
    for _ in 0..2 {
        scene.rig().progress(&crm, 300).await;
        scene.strike(fault, &crm).await;
    }
    scene.rig().progress(&crm, 300).await;
    scene.verdict(crm).await
}

/// What is accepted rests on the outbox alone.
pub(super) async fn without_nats<S: Scene>(mut scene: S, fault: S::Fault) -> Report {
    let crm = scene.rig().load(PATIENT);
    for _ in 0..2 {
        scene.rig().progress(&crm, 300).await;
        scene.rig().world.nats.kill();
        scene.rig().on_the_outbox_alone(&crm, 320).await;
        scene.strike(fault, &crm).await;
        scene.rig().on_the_outbox_alone(&crm, 100).await;
        scene.rig().world.nats.start_again().await;
    }
    scene.rig().progress(&crm, 300).await;
    scene.verdict(crm).await
}

/// How many events settings may lose that allow it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Loss {
    /// Fewer show nothing.
    AtLeast(usize),
    /// More than is promised.
    AtMost(usize),
}

/// A row that shows what is lost under settings that allow it. Nothing else may be wrong.
pub(super) fn measured(mut report: Report, allowed: Loss) -> Report {
    let lost = std::mem::take(&mut report.lost);
    report.statuses = format!("LOST {lost}, as these settings allow; {}", report.statuses);
    report.violations.retain(|violation| {
        let words = ["accepted, but not in the stream", "without their event", "claims were answered as new"];
        !words.iter().any(|words| violation.contains(words))
    });
    match allowed {
        Loss::AtLeast(least) => {
            let otherwise = format!("{lost} lost, and {least} were expected: the scenario shows nothing");
            demand(&mut report, lost >= least, otherwise);
        }
        Loss::AtMost(most) => {
            demand(&mut report, lost <= most, format!("{lost} lost, and at most {most} are allowed"));
            report.statuses = format!("at most {most} allowed; {}", report.statuses);
        }
    }
    report
}
