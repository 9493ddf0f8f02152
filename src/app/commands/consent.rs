//! The command `consent`, and the rule that an enrolment may have to state one.

use crate::app::commands::commander::Commander;
use crate::app::commands::failure::CommandError;
use crate::app::commands::reply_to::{ReplyTo, WrittenReply};
use crate::ids::SubjectId;
use crate::store::{StoreError, Subject, Tx};
use crate::wire::command::{ConsentAction, ConsentChange, ErrorCode, Rejection};
use crate::wire::consent::Consent;
use crate::wire::event::{Body, EndReason, Enrolment, EnrolmentAction, NewEvent, SubjectRef};
use crate::wire::reply::{ConsentRecorded, Reply, Withdrawn};

impl Commander {
    /// Rejects an enrolment whose consent has ended, and one without a consent where one is required
    /// and none is recorded.
    pub(super) async fn check_consent(
        &self,
        id: &SubjectId,
        consent: Option<&Consent>,
    ) -> Result<(), CommandError> {
        if let Some(consent) = consent {
            return self.check_not_ended(consent);
        }
        if !self.is_consent_required {
            return Ok(());
        }
        let id = id.clone();
        let now = self.clock.now();
        let is_valid = |it: Consent| !now.trusted || !it.has_ended(now.wall_ms);
        if self.store.read(move |tx| tx.consent(&id)).await?.is_some_and(is_valid) {
            return Ok(());
        }
        let why = "is missing, and [enrolment] consent = \"required\"";
        let rejection = Rejection::of_field(ErrorCode::ConsentRequired, "consent", why);
        Err(CommandError::Rejected { rejection, lasting: true })
    }

    /// By a trusted clock only: another may be years ahead.
    fn check_not_ended(&self, consent: &Consent) -> Result<(), CommandError> {
        let now = self.clock.now();
        if !now.trusted || !consent.has_ended(now.wall_ms) {
            return Ok(());
        }
        let field = "consent.valid_until";
        let rejection = Rejection::of_field(ErrorCode::BadValue, field, "is past");
        Err(CommandError::Rejected { rejection, lasting: true })
    }

    pub(super) async fn change_consent(
        &self,
        to: ReplyTo,
        change: ConsentChange,
    ) -> Result<WrittenReply, CommandError> {
        let ConsentChange { subject_id, action } = change;
        match action {
            ConsentAction::Record(consent) => self.record_consent(to, subject_id, consent).await,
            ConsentAction::Withdraw { erase } => self.end_consent(to, subject_id, erase).await,
        }
    }

    async fn record_consent(
        &self,
        to: ReplyTo,
        id: SubjectId,
        consent: Consent,
    ) -> Result<WrittenReply, CommandError> {
        self.check_not_ended(&consent)?;
        let at = self.clock.now();
        let write = move |tx: &mut Tx<'_>| {
            record_consent(tx, &id, &consent, at, Some(&to.request_id))?;
            let body = ConsentRecorded { subject_id: id.clone(), consent: consent.clone() };
            to.accept(tx, Reply::ConsentRecorded(body))
        };
        Ok(self.store.write_async(write).await?)
    }

    async fn end_consent(
        &self,
        to: ReplyTo,
        id: SubjectId,
        erase: bool,
    ) -> Result<WrittenReply, CommandError> {
        let at = self.clock.now();
        let removed = id.clone();
        let write = move |tx: &mut Tx<'_>| {
            let subject = known(tx, &id)?;
            let request_id = Some(to.request_id.as_str());
            let reason = EndReason::ConsentWithdrawn;
            let body = if erase {
                let erased = tx.erase_as_asked(&id, request_id)?;
                tx.note_erased_for_consent(&id)?;
                let action = EnrolmentAction::Erased;
                let request_id = request_id.map(str::to_owned);
                let body = Enrolment::new(action, None, erased.references, request_id);
                let body = Enrolment { reason: Some(reason), ..body };
                tx.append_event(&NewEvent::new(at, Body::Enrolment(body)))?;
                Withdrawn { references: erased.references, erased: true, events: erased.events }
            } else {
                let references = tx.end_consent(subject, at, reason, request_id)?;
                Withdrawn { references, erased: false, events: 0 }
            };
            to.accept(tx, Reply::Withdrawn(body))
        };
        let _turn = self.gallery.lock_for_change().await;
        let reply = self.store.write_async(write).await?;
        self.gallery.update(|gallery| gallery.without(&removed));
        self.changed.notify_one();
        Ok(reply)
    }
}

fn known(tx: &Tx<'_>, id: &SubjectId) -> Result<Subject, StoreError> {
    tx.subject(id)?.ok_or_else(|| StoreError::UnknownSubject { id: id.clone() })
}

/// Records the consent of an enrolled subject, with an event.
pub fn record_consent(
    tx: &mut Tx<'_>,
    id: &SubjectId,
    consent: &Consent,
    at: crate::clock::Stamp,
    request_id: Option<&str>,
) -> Result<(), StoreError> {
    let Subject { id, name, references, .. } = known(tx, id)?;
    tx.put_consent(&id, consent)?;
    let subject = Some(SubjectRef { id, name });
    let request_id = request_id.map(str::to_owned);
    let body = Enrolment::new(EnrolmentAction::Updated, subject, references, request_id);
    let body = Enrolment { consent: Some(consent.clone()), ..body };
    tx.append_event(&NewEvent::new(at, Body::Enrolment(body)))?;
    Ok(())
}
