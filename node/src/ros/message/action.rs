//! The messages that an action is made of: `Generate`'s three services and its feedback.

use super::interface::message;
use super::{Answer, Feedback, Question, Time, Uuid};

message! {
    /// A goal.
    pub struct SendGoalRequest = "takt_msgs" Action "Generate_SendGoal_Request" {
        /// Its identity, made by the client.
        pub goal_id: Uuid,
        /// What is asked.
        pub goal: Question,
    }

    /// Whether a goal is accepted.
    pub struct SendGoalResponse = "takt_msgs" Action "Generate_SendGoal_Response" {
        /// Whether; if not, `~/reply` says why.
        pub accepted: bool,
        /// When.
        pub stamp: Time,
    }

    /// Which goal's result.
    pub struct GetResultRequest = "takt_msgs" Action "Generate_GetResult_Request" {
        /// Which.
        pub goal_id: Uuid,
    }

    /// A goal's end.
    pub struct GetResultResponse = "takt_msgs" Action "Generate_GetResult_Response" {
        /// As in `action_msgs/msg/GoalStatus`; 0 for a goal that is not known.
        pub status: i8,
        /// How it ended.
        pub result: Answer,
    }

    /// News of a goal.
    pub struct FeedbackMessage = "takt_msgs" Action "Generate_FeedbackMessage" {
        /// Which.
        pub goal_id: Uuid,
        /// What came.
        pub feedback: Feedback,
    }
}
