use std::time::Duration;

use crossbeam_channel::Receiver;
use takt_node::request::{Request, RequestId, RequestSender, Status};
use takt_node::ros::message::{
    CancelGoalRequest, CancelGoalResponse, FeedbackMessage, GENERATE, GetResultRequest, GetResultResponse,
    GoalInfo, GoalStatusArray, Message as _, Question, SendGoalRequest, SendGoalResponse, Time, Uuid,
};
use takt_node::ros::transport::{Durability, Qos};
use takt_node::ros::{AskDefaults, RosNode, RosOptions, TypeName, serve};

use super::client::{Peer, Service};
use super::{PATIENCE, dds_options, private_options, send_reply, send_tokens, user_text};

const ACCEPTED_STATUSES: [i8; 3] = [4, 5, 6];

/// Answers prompts that start with `wait` only when they are cancelled, all others at once.
fn patient_worker() -> RequestSender {
    let (cancels, cancelled) = crossbeam_channel::unbounded();
    let (queue, requests) = crossbeam_channel::bounded(64);
    std::thread::spawn(move || work(&requests, &cancelled));
    RequestSender::new(queue).with_cancels(cancels)
}

fn work(requests: &Receiver<Request>, cancelled: &Receiver<RequestId>) {
    let mut open: Vec<Request> = Vec::new();
    loop {
        crossbeam_channel::select! {
            recv(requests) -> request => {
                let Ok(request) = request else { return };
                let answer = format!("echo: {}", user_text(&request));
                send_tokens(&request, &answer);
                if answer.starts_with("echo: wait") {
                    open.push(request);
                } else {
                    send_reply(&request, Status::Complete, &answer);
                }
            }
            recv(cancelled) -> id => {
                let Ok(id) = id else { return };
                if let Some(at) = open.iter().position(|request| request.id == id) {
                    let request = open.remove(at);
                    send_reply(&request, Status::Cancelled, "cut");
                }
            }
        }
    }
}

struct Client {
    _node: RosNode,
    peer: Peer,
    send_goal: Service,
    get_result: Service,
    cancel: Service,
}

impl Client {
    fn start(options: &RosOptions) -> Self {
        let node = serve(options, patient_worker(), AskDefaults::default()).unwrap();
        let peer = Peer::of(options);
        let part = |name: &'static str| TypeName { name, ..GENERATE };
        Self {
            send_goal: peer.service("generate/_action/send_goal", part("Generate_SendGoal")),
            get_result: peer.service("generate/_action/get_result", part("Generate_GetResult")),
            cancel: peer.service("generate/_action/cancel_goal", TypeName::srv("action_msgs", "CancelGoal")),
            peer,
            _node: node,
        }
    }

    fn goal(&self, id: u8, prompt: &str) -> SendGoalResponse {
        let goal =
            Question { prompt: prompt.to_owned(), request_id: format!("goal {id}"), ..Question::default() };
        self.send_goal.call(&SendGoalRequest { goal_id: uuid(id), goal })
    }

    fn result(&self, id: u8) -> GetResultResponse {
        self.get_result.call(&GetResultRequest { goal_id: uuid(id) })
    }

    fn cancel(&self, goal_id: Uuid, stamp: Time) -> CancelGoalResponse {
        self.cancel.call(&CancelGoalRequest { goal_info: GoalInfo { goal_id, stamp } })
    }
}

fn uuid(id: u8) -> Uuid {
    Uuid { uuid: [id; 16] }
}

#[test]
fn a_goal_is_accepted_streamed_and_its_result_kept() {
    let options = private_options();
    let client = Client::start(&options);
    let feedback = client.peer.listen::<FeedbackMessage>("generate/_action/feedback", Qos::STREAM);
    // The node's writer may see the subscription later than the subscription sees the writer: the first goals' news can be lost.
    let (id, parts) = (1..10)
        .find_map(|id| {
            let accepted = client.goal(id, "fetch the cup");
            assert!(accepted.accepted && accepted.stamp > Time::ZERO);
            let result = client.result(id);
            assert_eq!((result.status, result.result.text.as_str()), (4, "echo: fetch the cup"));
            assert_eq!(
                (result.result.status, result.result.request_id),
                ("complete".to_owned(), format!("goal {id}"))
            );
            let is_last = |part: &FeedbackMessage| part.feedback.text_so_far == "echo: fetch the cup";
            let parts = feedback.try_until(Duration::from_secs(2), is_last)?;
            let is_whole = parts.first().is_some_and(|part| part.feedback.index == 0);
            (is_whole && parts.iter().all(|part| part.goal_id == uuid(id))).then_some((id, parts))
        })
        .expect("no goal's feedback came whole");
    let mut so_far = String::new();
    for (i, part) in parts.iter().enumerate() {
        assert_eq!(
            (part.feedback.index, part.feedback.offset),
            (u32::try_from(i).unwrap(), u32::try_from(so_far.len()).unwrap())
        );
        so_far.push_str(&part.feedback.text);
        assert_eq!(part.feedback.text_so_far, so_far);
    }
    assert_eq!(client.result(id).result.text, "echo: fetch the cup", "asked for again");
    assert_eq!(client.result(99).status, 0, "never heard of");
}

#[test]
fn a_goal_that_cannot_be_pursued_is_not_accepted() {
    let options = dds_options();
    let client = Client::start(&options);
    assert!(!client.goal(1, "  ").accepted);
    assert_eq!(client.result(1).status, 0);
    assert!(client.goal(2, "wait").accepted);
    assert!(!client.goal(2, "wait").accepted, "its identity is taken");
    let garbage = client.send_goal.start(&takt_node::ros::message::Text { data: "x".to_owned() });
    assert!(!SendGoalResponse::decode(&garbage.wait(PATIENCE).unwrap()).unwrap().accepted);
}

#[test]
fn each_cancel_reaches_its_own_goal_though_others_run() {
    let options = private_options();
    let client = Client::start(&options);
    for id in 1..=4 {
        assert!(client.goal(id, &format!("wait {id}")).accepted);
    }
    let pending = client.get_result.start(&GetResultRequest { goal_id: uuid(2) });
    let cancelled = client.cancel(uuid(2), Time::ZERO);
    assert_eq!((cancelled.return_code, cancelled.goals_canceling.len()), (0, 1));
    let result = GetResultResponse::decode(&pending.wait(PATIENCE).unwrap()).unwrap();
    assert_eq!(
        (result.status, result.result.status.as_str(), result.result.text.as_str()),
        (5, "cancelled", "cut")
    );
    assert_eq!(client.cancel(uuid(2), Time::ZERO).return_code, 3, "it has ended");
    assert_eq!(client.cancel(uuid(9), Time::ZERO).return_code, 2, "never heard of");
    let all = client.cancel(Uuid::default(), Time::ZERO);
    assert_eq!((all.return_code, all.goals_canceling.len()), (0, 3));
    for id in [1, 3, 4] {
        assert_eq!(client.result(id).status, 5);
    }
}

#[test]
fn goals_accepted_until_a_time_can_be_cancelled_together() {
    let options = private_options();
    let client = Client::start(&options);
    let first = client.goal(1, "wait 1").stamp;
    let second = client.goal(2, "wait 2").stamp;
    assert!(first < second);
    let cancelled = client.cancel(Uuid::default(), first);
    assert_eq!(cancelled.goals_canceling.iter().map(|goal| goal.goal_id).collect::<Vec<_>>(), [uuid(1)]);
    assert_eq!(client.result(1).status, 5);
    assert_eq!(client.cancel(uuid(2), first).goals_canceling.len(), 1, "named and older");
}

#[test]
fn late_comers_are_told_how_far_every_goal_is() {
    let options = private_options();
    let client = Client::start(&options);
    assert!(client.goal(1, "done at once").accepted);
    client.result(1);
    let late = Qos { durability: Durability::TransientLocal, depth: 1, ..Qos::DEFAULT };
    let status = client.peer.listen::<GoalStatusArray>("generate/_action/status", late);
    let told =
        status.until(|array| array.status_list.iter().any(|goal| ACCEPTED_STATUSES.contains(&goal.status)));
    let last = told.last().unwrap();
    assert_eq!((last.status_list[0].goal_info.goal_id, last.status_list[0].status), (uuid(1), 4));
}
