//! The robot's control loop: a tick every 100 ms that never waits for the model.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use super::{
    robot::Robot,
    situation::{RobotState, Situation},
    summary::{Exchange, LoopTimes},
};
use crate::ros::{self, AskClient, RosDuration, RosError};

/// The control period.
pub const PERIOD: Duration = Duration::from_millis(100);
/// How much longer than its deadline an answer may take before it counts as lost.
const GRACE: Duration = Duration::from_secs(2);

/// Ticks the robot has for an action before the next question, however late the answer came.
const MIN_TICKS_TO_ACT: u32 = 2;

/// How quickly the script is played.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Control ticks between two questions.
    pub ticks_per_question: u32,
    /// Simulated seconds of a control period.
    pub simulated_s: f32,
}

impl Pace {
    /// About 25 seconds in all.
    pub const NORMAL: Self = Self { ticks_per_question: 15, simulated_s: 1.0 };
    /// A few seconds in all.
    pub const FAST: Self = Self { ticks_per_question: 3, simulated_s: 5.0 };
}

/// A question on its way to the node.
#[derive(Debug)]
pub struct Question {
    /// Position in the script.
    pub situation_idx: usize,
    /// What is sent.
    pub request: ros::Question,
    /// Time allowed.
    pub deadline: Duration,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Position in the script.
    pub situation_idx: usize,
    /// The reply, or why there is none.
    pub reply: Result<ros::Answer, RosError>,
    /// Asked to answered, as the robot sees it.
    pub round_trip: Duration,
}

/// What the screen is told.
#[derive(Debug)]
pub enum Happening {
    /// The scene differs from where the robot ended up, and was set again.
    SceneReset(RobotState),
    /// An operator spoke.
    Asked(usize),
    /// An answer came and the robot acts on it.
    Answered(Box<Exchange>),
}

/// Asks the node in a thread of its own, one question after another.
#[derive(Debug)]
pub struct Asker {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
}

impl Asker {
    /// Starts the thread; it ends with the asker.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(client: AskClient) -> std::io::Result<Self> {
        let (questions, to_ask) = bounded::<Question>(1);
        let (answered, answers) = bounded(1);
        std::thread::Builder::new().name("asker".into()).spawn(move || {
            for question in to_ask {
                let asked = Instant::now();
                let reply = client.ask(&question.request, question.deadline + GRACE);
                let round_trip = asked.elapsed();
                let answer = Answer { situation_idx: question.situation_idx, reply, round_trip };
                if answered.send(answer).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }
}

/// Plays the whole script; returns when the last answer is acted on, or `cancelled` is set.
#[must_use]
pub fn play(
    script: &[Situation],
    pace: Pace,
    asker: &Asker,
    screen: &Sender<Happening>,
    cancelled: &AtomicBool,
) -> LoopTimes {
    let mut times = LoopTimes::default();
    let mut robot =
        Robot::new(script.first().map(|first| RobotState::parse(&first.system)).unwrap_or_default());
    let (mut next, mut is_waiting, mut next_ask_tick) = (0, false, 1_u32);
    let started = Instant::now();
    for tick in 1_u32.. {
        let due = started + PERIOD * tick;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        times.note_tick(Instant::now().saturating_duration_since(due));
        let working_since = Instant::now();
        robot.tick(pace.simulated_s);
        if is_waiting {
            match asker.answers.try_recv() {
                Ok(answer) => {
                    is_waiting = false;
                    next_ask_tick = next_ask_tick.max(tick + MIN_TICKS_TO_ACT);
                    act(&mut robot, &script[answer.situation_idx], answer, screen);
                }
                Err(TryRecvError::Empty) => times.ticks_while_waiting += 1,
                Err(TryRecvError::Disconnected) => return times,
            }
        }
        if !is_waiting && next == script.len() {
            return times;
        }
        if !is_waiting && tick >= next_ask_tick {
            set_scene(&mut robot, &script[next], screen);
            is_waiting = ask(next, &script[next], asker, screen);
            next += 1;
            next_ask_tick = tick + pace.ticks_per_question;
        }
        times.note_work(working_since.elapsed());
        if cancelled.load(Ordering::Relaxed) {
            return times;
        }
    }
    times
}

/// The script goes on from its own state; where the robot ended up elsewhere, people set the scene again and we say so.
fn set_scene(robot: &mut Robot, situation: &Situation, screen: &Sender<Happening>) {
    let scene = RobotState::parse(&situation.system);
    let is_elsewhere = robot.state().at != scene.at || robot.state().gripper != scene.gripper;
    if is_elsewhere || robot.state() != &scene {
        *robot = Robot::new(scene.clone());
    }
    if is_elsewhere {
        let _ = screen.try_send(Happening::SceneReset(scene));
    }
}

fn ask(situation_idx: usize, situation: &Situation, asker: &Asker, screen: &Sender<Happening>) -> bool {
    let deadline = situation.deadline();
    let request = ros::Question {
        prompt: situation.user.clone(),
        system: situation.system.clone(),
        deadline: RosDuration::from_std(deadline),
        ..ros::Question::default()
    };
    let _ = screen.try_send(Happening::Asked(situation_idx));
    asker.questions.try_send(Question { situation_idx, request, deadline }).is_ok()
}

fn act(robot: &mut Robot, situation: &Situation, answer: Answer, screen: &Sender<Happening>) {
    let exchange = Exchange::new(situation, answer);
    robot.start(&exchange.action);
    let _ = screen.try_send(Happening::Answered(Box::new(exchange)));
}

/// Room for everything that can happen before the screen shows it.
#[must_use]
pub fn screen_room(script: &[Situation]) -> usize {
    script.len() * 3 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An asker without a network: answers what the script expects, late where told.
    fn oracle(script: &[Situation]) -> Asker {
        let (questions, to_ask) = bounded::<Question>(1);
        let (answered, answers) = bounded(1);
        let script = script.to_vec();
        std::thread::spawn(move || {
            for question in to_ask {
                let text = script[question.situation_idx].answer.clone();
                let reply = ros::Answer { status: "complete".into(), text, ..ros::Answer::default() };
                let answer = Answer {
                    situation_idx: question.situation_idx,
                    reply: Ok(reply),
                    round_trip: Duration::from_millis(7),
                };
                if answered.send(answer).is_err() {
                    return;
                }
            }
        });
        Asker { questions, answers }
    }

    #[test]
    fn with_right_answers_the_robot_ends_up_where_the_script_goes_on() {
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/takt-demo");
        // Two errands are enough: go to the workshop, and be there.
        let script: Vec<Situation> = Situation::read_all(&model).unwrap().into_iter().take(3).collect();
        let (screen, seen) = bounded(screen_room(&script));
        let pace = Pace { ticks_per_question: 1, simulated_s: 60.0 };
        let times = play(&script, pace, &oracle(&script), &screen, &AtomicBool::new(false));
        drop(screen);
        let happenings: Vec<Happening> = seen.iter().collect();
        let answered =
            happenings.iter().filter(|h| matches!(h, Happening::Answered(e) if e.is_expected)).count();
        assert_eq!(answered, 3);
        assert!(times.num_ticks >= 4);
        assert!(!happenings.iter().any(|h| matches!(h, Happening::SceneReset(_))), "{happenings:?}");
    }
}
