//! Which goals a cancel request means, by the rules of `action_msgs/srv/CancelGoal`.

use super::{GoalState, Goals, forget_old};
use crate::ros::message::{CancelGoalRequest, CancelGoalResponse, GoalInfo, Time, Uuid};

/// At least one goal is being cancelled.
const NONE: i8 = 0;
/// No goal fits.
const UNKNOWN_GOAL_ID: i8 = 2;
/// The goal has ended.
const GOAL_TERMINATED: i8 = 3;

impl Goals {
    /// Cancels what `request` means: an identity means that goal; a time all accepted until then; both either; neither all.
    pub fn cancel(&self, request: &CancelGoalRequest) -> CancelGoalResponse {
        let GoalInfo { goal_id, stamp } = request.goal_info;
        let (has_id, has_stamp) = (goal_id != Uuid::default(), stamp != Time::ZERO);
        let mut goals = self.lock();
        forget_old(&mut goals);
        let named = goals.get(&goal_id).map(|goal| goal.state);
        let mut goals_canceling = Vec::new();
        for (id, goal) in goals.iter_mut() {
            let is_meant = (!has_id && !has_stamp)
                || (has_id && *id == goal_id)
                || (has_stamp && goal.accepted_at <= stamp);
            if !is_meant || goal.state.has_ended() || goal.state == GoalState::Canceling {
                continue;
            }
            match &goal.request {
                Some((request, requests)) => requests.cancel(*request),
                None => goal.is_cancel_asked = true,
            }
            goal.state = GoalState::Canceling;
            goals_canceling.push(GoalInfo { goal_id: *id, stamp: goal.accepted_at });
        }
        let return_code = match named {
            _ if !goals_canceling.is_empty() => NONE,
            None if has_id => UNKNOWN_GOAL_ID,
            Some(_) => GOAL_TERMINATED,
            // A cancel of all where there are none is a success, as in rcl.
            None => NONE,
        };
        if !goals_canceling.is_empty() {
            self.tell(&goals);
        }
        CancelGoalResponse { return_code, goals_canceling }
    }
}
