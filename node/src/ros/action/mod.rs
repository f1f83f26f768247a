//! The action `~/generate`: goals that are answered while they grow, and that can be cancelled.
//!
//! One table of goals behind one lock serves all clients, so that no cancel and no result goes to the wrong one. A goal's result is kept for
//! ten seconds after its end, as rcl keeps it; an unknown goal's is answered with the status *unknown*.

mod cancel;
mod service;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::RosError;
use super::cdr::CdrError;
use super::clock::RosClock;
use super::message::{
    Answer, Feedback, FeedbackMessage, GENERATE, GetResultResponse, GoalInfo, GoalStatus, GoalStatusArray,
    Message as _, Question, SendGoalRequest, SendGoalResponse, Uuid,
};
use super::name::TypeName;
use super::service::send;
use super::transport::{Publish, Respond};
use crate::request::{RequestId, RequestSender, Status};

pub(super) use service::offer;

/// How long a result can be fetched after a goal's end.
const RESULT_TIMEOUT: Duration = Duration::from_secs(10);
/// Goals remembered; beyond it new ones are refused.
const MAX_GOALS: usize = 512;
/// Clients that may wait for one goal's result.
const MAX_WAITING: usize = 16;

/// `<name>/_action/send_goal`.
pub(super) const SEND_GOAL: TypeName = TypeName { name: "Generate_SendGoal", ..GENERATE };
/// `<name>/_action/get_result`.
pub(super) const GET_RESULT: TypeName = TypeName { name: "Generate_GetResult", ..GENERATE };

/// How far a goal is: `action_msgs/msg/GoalStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub(super) enum GoalState {
    Accepted = 1,
    Executing = 2,
    Canceling = 3,
    Succeeded = 4,
    Canceled = 5,
    Aborted = 6,
}

impl GoalState {
    fn has_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Canceled | Self::Aborted)
    }
}

/// One goal.
struct Goal {
    accepted_at: super::message::Time,
    state: GoalState,
    /// Who asks for acceptance, until it is decided.
    accepting: Option<Box<dyn Respond>>,
    /// The worker's part, once it has it.
    request: Option<(RequestId, RequestSender)>,
    /// Cancelled before the worker had it.
    is_cancel_asked: bool,
    /// Who waits for its end.
    waiting: Vec<Box<dyn Respond>>,
    /// Its end, and when that was.
    result: Option<(Answer, Instant)>,
}

/// The table of goals.
pub(super) struct Goals {
    goals: Mutex<HashMap<Uuid, Goal>>,
    feedback: Box<dyn Publish>,
    status: Box<dyn Publish>,
    clock: RosClock,
}

impl std::fmt::Debug for Goals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Goals").field("num_goals", &self.lock().len()).finish_non_exhaustive()
    }
}

/// What became of a request for a goal.
pub(super) enum SendGoal {
    /// It is to be answered.
    New(Uuid, Box<Question>),
    /// Its client knows that it is not; who asked, as far as it is known, and why.
    Refused { request_id: String, reason: String },
}

impl Goals {
    /// No goals yet.
    pub fn new(feedback: Box<dyn Publish>, status: Box<dyn Publish>, clock: RosClock) -> Self {
        Self { goals: Mutex::default(), feedback, status, clock }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Goal>> {
        self.goals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client's goal: entered in the table, not accepted yet.
    pub fn receive(&self, message: &[u8], respond: Box<dyn Respond>) -> SendGoal {
        let refuse = |respond, request_id: String, reason: String| {
            send(respond, SEND_GOAL, &SendGoalResponse::default(), None);
            SendGoal::Refused { request_id, reason }
        };
        let SendGoalRequest { goal_id, goal } = match SendGoalRequest::decode(message) {
            Ok(request) => request,
            Err(error) => {
                return refuse(
                    respond,
                    String::new(),
                    format!("not a takt_msgs/action/Generate goal: {error}"),
                );
            }
        };
        let mut goals = self.lock();
        forget_old(&mut goals);
        if goals.len() >= MAX_GOALS {
            return refuse(
                respond,
                goal.request_id,
                format!("{MAX_GOALS} goals are remembered, the limit: ask again later"),
            );
        }
        if goals.contains_key(&goal_id) {
            return refuse(respond, goal.request_id, "another goal has its identity".to_owned());
        }
        let entry = Goal {
            accepted_at: self.clock.now(),
            state: GoalState::Accepted,
            accepting: Some(respond),
            request: None,
            is_cancel_asked: false,
            waiting: Vec::new(),
            result: None,
        };
        goals.insert(goal_id, entry);
        SendGoal::New(goal_id, Box::new(goal))
    }

    /// The worker has the goal's request; `is_let_in` if it was not refused at once.
    pub fn submitted(&self, goal_id: Uuid, id: RequestId, requests: &RequestSender, is_let_in: bool) {
        let mut goals = self.lock();
        let Some(goal) = goals.get_mut(&goal_id) else { return };
        goal.request = Some((id, requests.clone()));
        if goal.is_cancel_asked {
            requests.cancel(id);
        }
        if is_let_in {
            goal.accept();
            self.tell(&goals);
        }
    }

    /// News of a goal; it is accepted with the first, at the latest.
    pub fn feedback(&self, goal_id: Uuid, feedback: Feedback) {
        let mut goals = self.lock();
        if let Some(goal) = goals.get_mut(&goal_id)
            && goal.accept()
        {
            self.tell(&goals);
        }
        drop(goals);
        let message = FeedbackMessage { goal_id, feedback }.encode();
        self.publish(&*self.feedback, "takt_msgs/Generate feedback", message);
    }

    /// A goal's end: everybody who waits for it is told. One that was never let in is refused.
    pub fn finish(&self, goal_id: Uuid, status: Status, answer: Answer) {
        let mut goals = self.lock();
        let Some(mut goal) = goals.remove(&goal_id) else { return };
        if status == Status::Rejected
            && let Some(respond) = goal.accepting.take()
        {
            send(respond, SEND_GOAL, &SendGoalResponse::default(), None);
            // Who asked for its result before it was let in.
            goal.waiting.into_iter().for_each(answer_unknown);
            return;
        }
        goal.accept();
        goal.state = match status {
            Status::Complete | Status::TruncatedAtDeadline | Status::ClosedAtDeadline => GoalState::Succeeded,
            Status::Cancelled if goal.state == GoalState::Canceling => GoalState::Canceled,
            Status::Rejected | Status::Cancelled | Status::Failed => GoalState::Aborted,
        };
        for respond in std::mem::take(&mut goal.waiting) {
            answer_result(respond, goal.state, answer.clone());
        }
        goal.result = Some((answer, Instant::now()));
        goals.insert(goal_id, goal);
        self.tell(&goals);
    }

    /// A client wants a goal's end: now, if it has ended, or then.
    pub fn result_for(&self, goal_id: Uuid, respond: Box<dyn Respond>) {
        let mut goals = self.lock();
        forget_old(&mut goals);
        match goals.get_mut(&goal_id) {
            None => answer_unknown(respond),
            Some(Goal { result: Some((answer, _)), state, .. }) => {
                answer_result(respond, *state, answer.clone());
            }
            Some(goal) => {
                // One client asks once; somebody who asks again and again is not remembered for ever.
                if goal.waiting.len() >= MAX_WAITING {
                    answer_unknown(goal.waiting.remove(0));
                }
                goal.waiting.push(respond);
            }
        }
    }

    /// Publishes how far every goal is.
    fn tell(&self, goals: &HashMap<Uuid, Goal>) {
        let status = |(goal_id, goal): (&Uuid, &Goal)| GoalStatus {
            goal_info: GoalInfo { goal_id: *goal_id, stamp: goal.accepted_at },
            status: goal.state as i8,
        };
        let known = goals.iter().filter(|(_, goal)| goal.accepting.is_none());
        let mut status_list: Vec<GoalStatus> = known.map(status).collect();
        status_list.sort_by_key(|status| status.goal_info.stamp);
        self.publish(&*self.status, "action_msgs/GoalStatusArray", GoalStatusArray { status_list }.encode());
    }

    fn publish(&self, topic: &dyn Publish, what: &'static str, message: Result<Vec<u8>, CdrError>) {
        let sent = message
            .map_err(|error| RosError::Message { what, error })
            .and_then(|message| topic.publish(&message));
        if let Err(error) = sent {
            tracing::warn!("{error}");
        }
    }
}

impl Goal {
    /// Tells its client that it is pursued, once; whether that was now.
    fn accept(&mut self) -> bool {
        let Some(respond) = self.accepting.take() else { return false };
        let response = SendGoalResponse { accepted: true, stamp: self.accepted_at };
        send(respond, SEND_GOAL, &response, None);
        if self.state == GoalState::Accepted {
            self.state = GoalState::Executing;
        }
        true
    }
}

/// There is no such goal.
fn answer_unknown(respond: Box<dyn Respond>) {
    send(respond, GET_RESULT, &GetResultResponse::default(), None);
}

fn answer_result(respond: Box<dyn Respond>, state: GoalState, answer: Answer) {
    let instead = GetResultResponse { status: state as i8, result: answer.clone().not_heard() };
    send(respond, GET_RESULT, &GetResultResponse { status: state as i8, result: answer }, Some(&instead));
}

/// Drops what ended long ago.
fn forget_old(goals: &mut HashMap<Uuid, Goal>) {
    goals.retain(|_, goal| goal.result.as_ref().is_none_or(|(_, ended)| ended.elapsed() < RESULT_TIMEOUT));
}
