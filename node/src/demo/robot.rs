//! A robot that exists only here: it drives on a small map, has one gripper and a battery, and does what an answer says.

use serde_json::Value;

use super::situation::RobotState;

/// Driving speed on the map.
const METRES_PER_S: f32 = 1.2;
/// A grasp, a release, a photo.
const ARM_S: f32 = 2.0;
/// Charge used by driving one metre.
const PERCENT_PER_M: f32 = 0.15;

/// What an answer makes the robot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Drives to a place.
    Drive(String),
    /// Takes an object.
    Grasp(String),
    /// Takes an object (unless held) and drives to a place.
    Carry(String, Option<String>),
    /// Lets go of what it holds, somewhere or to somebody.
    Release(String),
    /// Uses its arm or camera without changing its state.
    Work(String),
    /// Drives to its dock.
    Dock,
    /// Stands still.
    Stop,
    /// Says something: a report, a question back, a refusal.
    Speak(String),
    /// The answer was no skill call.
    Confused,
}

impl Action {
    /// The action an answer means; anything that is no skill call is [`Action::Confused`].
    #[must_use]
    pub fn from_answer(text: &str) -> Self {
        let Ok(call) = serde_json::from_str::<Value>(text) else { return Self::Confused };
        let slot = |name: &str| call.get(name).and_then(Value::as_str).map(str::to_owned);
        let thing = || slot("object").unwrap_or_else(|| "it".into());
        match call.get("skill").and_then(Value::as_str) {
            Some("goto") => slot("place").map_or(Self::Confused, Self::Drive),
            Some("pick") => Self::Grasp(thing()),
            Some("bring") => Self::Carry(thing(), slot("place")),
            Some("place") => Self::Release(format!("puts the {} down{}", thing(), on(slot("place")))),
            Some("hand_over") => {
                Self::Release(format!("hands the {} to {}", thing(), slot("person").unwrap_or_default()))
            }
            Some("dock") => Self::Dock,
            Some("stop") => Self::Stop,
            Some("inspect") => {
                let count = call
                    .get("count")
                    .and_then(Value::as_u64)
                    .map(|n| format!(", {n} photos"))
                    .unwrap_or_default();
                Self::Work(format!("inspects the {}{count}", thing()))
            }
            Some("open") => Self::Work(format!("opens the {}", thing())),
            Some("close") => Self::Work(format!("closes the {}", thing())),
            Some("wait") => Self::Work("waits".into()),
            Some("follow") => {
                Self::Work(format!("follows {}", slot("person").unwrap_or_else(|| "the operator".into())))
            }
            Some("say") => Self::Speak(format!("says \"{}\"", slot("text").unwrap_or_default())),
            Some("report") => Self::Speak(format!(
                "reports {}: {}",
                slot("topic").unwrap_or_default(),
                slot("value").unwrap_or_default()
            )),
            Some("clarify") => {
                Self::Speak(format!("asks back: which {}?", slot("missing").unwrap_or_default()))
            }
            Some("refuse") => {
                Self::Speak(format!("declines: {}", slot("reason").unwrap_or_default().replace('_', " ")))
            }
            _ => Self::Confused,
        }
    }

    /// What it does, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Drive(place) => format!("drives to the {place}"),
            Self::Grasp(thing) => format!("grasps the {thing}"),
            Self::Carry(thing, place) => format!("brings the {thing}{}", on(place.clone())),
            Self::Release(words) | Self::Work(words) | Self::Speak(words) => words.clone(),
            Self::Dock => "drives to its dock".into(),
            Self::Stop => "stands still".into(),
            Self::Confused => "does nothing: that is no skill call".into(),
        }
    }
}

fn on(place: Option<String>) -> String {
    place.map(|place| format!(", {place}")).unwrap_or_default()
}

/// The robot between two control ticks.
#[derive(Debug, Clone)]
pub struct Robot {
    /// What it would tell about itself.
    state: RobotState,
    position: (f32, f32),
    charge: f32,
    /// What is still to be done, last first.
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    MoveTo(String),
    /// Seconds left, and what the gripper holds afterwards, where that changes.
    Arm(f32, Option<Option<String>>),
}

impl Robot {
    /// A robot that stands still in `state`.
    #[must_use]
    pub fn new(state: RobotState) -> Self {
        Self { position: position_of(&state.at), charge: f32::from(state.battery), steps: Vec::new(), state }
    }

    /// Where it stands and what it holds.
    #[must_use]
    pub fn state(&self) -> &RobotState {
        &self.state
    }

    /// Metres from the map's origin.
    #[must_use]
    pub fn position(&self) -> (f32, f32) {
        self.position
    }

    /// True when it has nothing left to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.steps.is_empty()
    }

    /// Starts `action`, dropping what it was doing.
    pub fn start(&mut self, action: &Action) {
        self.steps.clear();
        match action {
            Action::Drive(place) => self.steps.push(Step::MoveTo(place.clone())),
            Action::Dock => self.steps.push(Step::MoveTo("dock".into())),
            Action::Grasp(thing) => self.steps.push(Step::Arm(ARM_S, Some(Some(thing.clone())))),
            Action::Carry(thing, place) => {
                self.steps.extend(place.clone().map(Step::MoveTo));
                if self.state.gripper.as_ref() != Some(thing) {
                    self.steps.push(Step::Arm(ARM_S, Some(Some(thing.clone()))));
                }
            }
            Action::Release(_) => self.steps.push(Step::Arm(ARM_S, Some(None))),
            Action::Work(_) => self.steps.push(Step::Arm(ARM_S, None)),
            Action::Stop | Action::Speak(_) | Action::Confused => {}
        }
    }

    /// One control tick of `dt_s` seconds.
    pub fn tick(&mut self, dt_s: f32) {
        let Some(step) = self.steps.last_mut() else { return };
        match step {
            Step::MoveTo(place) => {
                let (target, place) = (position_of(place), place.clone());
                if self.drive(target, dt_s * METRES_PER_S) {
                    self.state.at = place;
                    self.steps.pop();
                }
            }
            Step::Arm(left_s, gripper_after) => {
                *left_s -= dt_s;
                if *left_s <= 0.0 {
                    if let Some(gripper) = gripper_after.take() {
                        self.state.gripper = gripper;
                    }
                    self.steps.pop();
                }
            }
        }
    }

    /// Moves up to `reach` metres towards `target`; true on arrival.
    fn drive(&mut self, target: (f32, f32), reach: f32) -> bool {
        let (dx, dy) = (target.0 - self.position.0, target.1 - self.position.1);
        let distance = dx.hypot(dy);
        let travelled = distance.min(reach);
        self.charge = (self.charge - travelled * PERCENT_PER_M).max(0.0);
        self.state.battery = self.charge.round() as u8; // 0 to 100
        if distance <= reach {
            self.position = target;
            return true;
        }
        self.position.0 += dx / distance * reach;
        self.position.1 += dy / distance * reach;
        false
    }
}

/// A place on the map: fixed for those of the script, spread over the floor for any other.
fn position_of(place: &str) -> (f32, f32) {
    match place {
        "dock" => (0.0, 0.0),
        "hallway" => (4.0, 1.0),
        "workshop" => (9.0, 5.0),
        "lab" => (2.0, 7.0),
        "table" => (3.0, 8.0),
        other => {
            let sum: usize = other.bytes().map(usize::from).sum();
            ((sum % 10) as f32, (sum / 10 % 10) as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn robot() -> Robot {
        Robot::new(RobotState::parse("Battery: 50%. At: hallway. Gripper: empty."))
    }

    fn run(robot: &mut Robot) {
        for _ in 0..1000 {
            robot.tick(0.1);
        }
    }

    #[test]
    fn it_fetches_and_brings_and_uses_its_battery() {
        let mut robot = robot();
        let answer = r#"{"skill":"bring","object":"green hammer","place":"lab"}"#;
        robot.start(&Action::from_answer(answer));
        assert!(!robot.is_idle());
        run(&mut robot);
        assert!(robot.is_idle());
        let state = robot.state();
        assert_eq!((state.at.as_str(), state.gripper.as_deref()), ("lab", Some("green hammer")));
        assert!(state.battery < 50);
        assert_eq!(robot.position(), position_of("lab"));
    }

    #[test]
    fn stop_ends_a_drive_at_once() {
        let mut robot = robot();
        robot.start(&Action::from_answer(r#"{"skill":"goto","place":"workshop"}"#));
        robot.tick(0.1);
        robot.start(&Action::from_answer(r#"{"skill":"stop"}"#));
        let stopped_at = robot.position();
        run(&mut robot);
        assert_eq!(robot.position(), stopped_at);
        assert_ne!(stopped_at, position_of("hallway"));
    }

    #[test]
    fn what_is_no_skill_call_moves_nothing() {
        for text in
            ["", "hello", "{}", r#"{"skill":"goto"}"#, r#"{"skill":"fly"}"#, "[1]", r#"{"skill":"goto","pla"#]
        {
            assert_eq!(Action::from_answer(text), Action::Confused, "{text}");
        }
    }
}
