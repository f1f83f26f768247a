//! The node as robots see it.
//!
//! | name | type | what |
//! |---|---|---|
//! | `~/ask` | `std_msgs/String` | a sentence to answer, with the node's default system prompt and deadline |
//! | `~/tokens` | `std_msgs/String` | its answer as it grows, one message a scheduler section; together they are the answer |
//! | `~/answer` | `std_msgs/String` | its answer: once for every sentence that got one, whole or cut at its deadline |
//! | `~/status` | `std_msgs/String` | JSON, once for every sentence, answered or refused: status, reason, timings |
//! | `~/prompt` | `takt_msgs/Prompt` | a question with everything that can be said of it |
//! | `~/stream` | `takt_msgs/Token` | answers to sentences, prompts and goals as they grow, one message a scheduler section |
//! | `~/sentence` | `takt_msgs/Token` | the same, one message a whole sentence: for speech |
//! | `~/reply` | `takt_msgs/Reply` | the end of every request, whichever way it came |
//! | `~/ask` (service) | `takt_msgs/srv/Ask` | one question with its own deadline; the reply carries status and timings |
//! | `~/generate` (action) | `takt_msgs/action/Generate` | the same with feedback, and cancelled at the next section if its goal is |
//! | `~/engine_info` (service) | `takt_msgs/srv/EngineInfo` | what the node runs |
//! | `/diagnostics` | `diagnostic_msgs/DiagnosticArray` | how well each part is |
//!
//! Besides, as every managed node: lifecycle and parameter services, `~/transition_event`, `/parameter_events`, `/rosout`.
//!
//! A refused sentence gets nothing on `~/answer`. What comes there was said by the model, and where the node has a `schema`, completed by
//! its defaults: `~/status` lists them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::action::{self, Goals};
use super::answering::{AskDefaults, Command, Gate, Intake, OpenCounts, Outlet, Topics};
use super::clock::RosClock;
use super::diagnostics::{Diagnostics, Source, Tally};
use super::endpoints::{self as at, Endpoints};
use super::governed::Governed;
use super::join::join;
use super::lifecycle::{self, Change, Lifecycle, State};
use super::message::{
    ASK, Answer, ENGINE_INFO, EngineInfo, EngineInfoRequest, Message as _, TransitionEvent,
};
use super::parameters::{self, Fixed, ParameterStore};
use super::rosout::Rosout;
use super::service::{blank, serve as serve_at_once};
use super::slot::{EngineSlot, Ready};
use super::transport::{Respond, Transport};
use super::{Names, QosOverrides, RosError, RosOptions};
use crate::config::Config;
use crate::request::RequestSender;

/// How long a node listens for a namesake before it is up; 20 of 20 second nodes noticed the first within 310 ms of their
/// process's start, on a busy machine of two cores.
const CLAIM_WINDOW: Duration = Duration::from_millis(600);
/// How long the last replies may take to be acknowledged when the node ends.
const DELIVERY_WAIT: Duration = Duration::from_millis(500);

/// What the lifecycle opens and closes.
pub trait Engine: Send {
    /// Opens the engine and learns what it costs; seconds may pass.
    ///
    /// # Errors
    /// Why it cannot be opened and what to do.
    fn open(&mut self) -> Result<Ready, String>;

    /// Answers what is open, and closes it.
    fn close(&mut self);
}

/// An engine that was opened elsewhere.
impl Engine for RequestSender {
    fn open(&mut self) -> Result<Ready, String> {
        Ok(Ready::new(self.clone(), EngineInfo::default()))
    }

    fn close(&mut self) {}
}

/// Makes what holds for the next requests from a configuration; refuses one that cannot be.
pub type Derive = Box<dyn Fn(&Config) -> Result<AskDefaults, String> + Send + Sync>;

/// What a node is made of, besides the network.
pub struct NodeSettings {
    /// What the lifecycle opens and closes.
    pub engine: Box<dyn Engine>,
    /// Its parameters' values.
    pub config: Arc<Mutex<Config>>,
    /// What holds for requests at first.
    pub defaults: AskDefaults,
    /// What holds for them after a parameter has changed.
    pub derive: Derive,
    /// Names and qualities of service.
    pub endpoints: Endpoints,
    /// Parameters that are no configuration keys.
    pub fixed: Vec<Fixed>,
    /// Whether messages are stamped with what `/clock` says.
    pub use_sim_time: bool,
    /// Whether the log is published.
    pub rosout: bool,
    /// Where the kernel's files are; `/` outside tests.
    pub system_root: PathBuf,
}

impl std::fmt::Debug for NodeSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeSettings").field("defaults", &self.defaults).finish_non_exhaustive()
    }
}

impl NodeSettings {
    /// Everything built in, for the node that `transport` is.
    #[must_use]
    pub fn new(transport: &dyn Transport, engine: Box<dyn Engine>, defaults: AskDefaults) -> Self {
        let unchanged = defaults.clone();
        Self {
            engine,
            config: Arc::new(Mutex::new(Config::built_in())),
            defaults,
            derive: Box::new(move |_| Ok(unchanged.clone())),
            endpoints: Endpoints::new(
                Names::new(transport.node().clone(), Vec::new()),
                QosOverrides::default(),
            ),
            fixed: Vec::new(),
            use_sim_time: false,
            rosout: false,
            system_root: PathBuf::from("/"),
        }
    }
}

/// The running node; closes when dropped.
#[derive(Debug)]
pub struct RosNode {
    lifecycle: Arc<Lifecycle>,
    intake: Arc<Intake>,
    gate: Arc<Gate>,
    open_counts: Arc<OpenCounts>,
    outlet: Option<JoinHandle<()>>,
    diagnostics: Option<Diagnostics>,
    rosout: Option<Rosout>,
    /// Lets the outlet refuse what is still open when dropped.
    commands: Option<Sender<Command>>,
    engine: EngineSlot,
    transport: Option<Box<dyn Transport>>,
}

/// Joins the domain of `options`, claims the node's name, and answers through `requests` from then on.
///
/// # Errors
/// [`RosError::NameTaken`] if another node has the name, [`RosError::Name`], [`RosError::Transport`].
pub fn serve(
    options: &RosOptions,
    requests: RequestSender,
    defaults: AskDefaults,
) -> Result<RosNode, RosError> {
    let transport = join(options)?;
    transport.claim_name(CLAIM_WINDOW)?;
    let settings = NodeSettings::new(transport.as_ref(), Box::new(requests), defaults);
    let node = RosNode::start(transport, settings)?;
    node.bring_up().map_err(|reason| RosError::Lifecycle { reason })?;
    Ok(node)
}

impl RosNode {
    /// Offers everything on `transport`, in the state unconfigured.
    ///
    /// # Errors
    /// [`RosError::Transport`], [`RosError::Name`].
    pub fn start(transport: Box<dyn Transport>, settings: NodeSettings) -> Result<Self, RosError> {
        let NodeSettings { endpoints, config, defaults, derive, fixed, .. } = settings;
        let (network, names) = (transport.as_ref(), &endpoints.names);
        for stranger in endpoints.strangers() {
            tracing::warn!("{stranger}");
        }
        let clock = match settings.use_sim_time {
            true => RosClock::simulated(network, names)?,
            false => RosClock::system(),
        };
        let rosout = settings.rosout.then(|| Rosout::start(network, names, &clock)).transpose()?;
        let engine = EngineSlot::default();
        let tally = Arc::new(Tally::default());
        let goals = Arc::new(Goals::start(network, &endpoints, clock.clone())?);
        let topics = Arc::new(Topics {
            tokens: endpoints.publisher(network, at::TOKENS)?,
            answer: endpoints.publisher(network, at::ANSWER)?,
            status: endpoints.publisher(network, at::STATUS)?,
            stream: endpoints.publisher(network, at::STREAM)?,
            sentence: endpoints.publisher(network, at::SENTENCE)?,
            reply: endpoints.publisher(network, at::REPLY)?,
            goals: Arc::clone(&goals),
            tally: Arc::clone(&tally),
            clock: clock.clone(),
        });
        let open_counts = Arc::new(OpenCounts::default());
        // Never longer than the limit of open requests, which a parameter may raise.
        let (opened, newly_open) = crossbeam_channel::unbounded();
        let (commands, commanded) = crossbeam_channel::bounded(1);
        let gate = Arc::new(Gate::new(defaults, Arc::clone(&topics), Arc::clone(&open_counts), opened));
        let outlet = Outlet::new(topics, gate.sessions(), Arc::clone(&open_counts), newly_open, commanded);
        let outlet = start_thread("takt-ros-out", || outlet.run())?;
        let governed = Governed {
            engine: settings.engine,
            slot: engine.clone(),
            gate: Arc::clone(&gate),
            open_counts: Arc::clone(&open_counts),
            commands: commands.clone(),
        };
        let events = network.publisher(
            &names.resolve_topic("~/transition_event")?,
            TransitionEvent::TYPE,
            super::transport::Qos::DEFAULT,
        )?;
        let lifecycle = Arc::new(Lifecycle::start(Box::new(governed), events, clock.clone())?);
        let intake = Arc::new(Intake::start(Arc::clone(&gate))?);
        let source = Source {
            node: network.node().to_string(),
            clock: clock.clone(),
            engine: engine.clone(),
            lifecycle: Arc::clone(&lifecycle),
            open_counts: Arc::clone(&open_counts),
            gate: Arc::clone(&gate),
            tally,
            system_root: settings.system_root,
            last: Default::default(),
        };
        let diagnostics = Diagnostics::start(network, names, source)?;
        // Made first, so that an error below stops the threads again.
        let mut node = Self {
            lifecycle,
            intake,
            gate,
            open_counts,
            outlet: Some(outlet),
            diagnostics: Some(diagnostics),
            rosout,
            commands: Some(commands),
            engine,
            transport: None,
        };
        let store = node.parameters(config, fixed, derive);
        node.offer(network, &endpoints, &goals)?;
        lifecycle::offer(network, names, &node.lifecycle)?;
        parameters::offer(network, names, &store, &clock)?;
        transport.announce()?;
        node.transport = Some(transport);
        Ok(node)
    }

    fn parameters(
        &self,
        config: Arc<Mutex<Config>>,
        fixed: Vec<Fixed>,
        derive: Derive,
    ) -> Arc<ParameterStore> {
        let (gate, lifecycle) = (Arc::clone(&self.gate), Arc::clone(&self.lifecycle));
        let take_over = Box::new(move |config: &Config| {
            gate.set_defaults(derive(config)?);
            Ok(())
        });
        let is_unconfigured = move || lifecycle.state() == State::Unconfigured;
        Arc::new(ParameterStore::new(config, fixed, is_unconfigured, take_over))
    }

    /// The doors by which questions come in.
    fn offer(
        &self,
        network: &dyn Transport,
        endpoints: &Endpoints,
        goals: &Arc<Goals>,
    ) -> Result<(), RosError> {
        let intake = || Arc::clone(&self.intake);
        let by_sentence = intake();
        endpoints.subscribe(network, at::ASK, Box::new(move |message| by_sentence.hear(message)))?;
        let by_prompt = intake();
        endpoints.subscribe(network, at::PROMPT, Box::new(move |message| by_prompt.read(message)))?;
        let by_service = intake();
        let on_request = Box::new(move |message: &[u8], respond: Box<dyn Respond>| {
            by_service.take(message, respond);
        });
        let names = &endpoints.names;
        network.serve(&names.resolve_service("~/ask")?, ASK, &blank::<Answer>()?, on_request)?;
        action::offer(network, endpoints, goals, &self.intake)?;
        let (engine, lifecycle, gate) =
            (self.engine.clone(), Arc::clone(&self.lifecycle), Arc::clone(&self.gate));
        let info = names.resolve_service("~/engine_info")?;
        serve_at_once(network, &info, ENGINE_INFO, move |_: EngineInfoRequest| {
            let ready = engine.get();
            let distrust = ready
                .as_ref()
                .and_then(|ready| ready.requests.no_engine().or_else(|| ready.requests.distrust()));
            EngineInfo {
                takt_version: env!("CARGO_PKG_VERSION").to_owned(),
                lifecycle_state: lifecycle.state().label().to_owned(),
                no_promises_because: distrust.unwrap_or_default(),
                default_deadline_ms: gate.defaults().deadline.map_or(0.0, super::message::millis),
                ..ready.map(|ready| ready.info).unwrap_or_default()
            }
        })
    }

    /// Opens the engine and begins to answer.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn bring_up(&self) -> Result<(), String> {
        self.lifecycle.change(Change::Configure)?;
        self.lifecycle.change(Change::Activate)
    }

    /// Carries out a lifecycle transition and waits for it.
    ///
    /// # Errors
    /// Why it failed, or is not possible now.
    pub fn change(&self, change: Change) -> Result<(), String> {
        self.lifecycle.change(change)
    }

    /// The lifecycle state.
    #[must_use]
    pub fn state(&self) -> State {
        self.lifecycle.state()
    }

    /// Requests being answered.
    #[must_use]
    pub fn num_open(&self) -> usize {
        self.open_counts.total()
    }

    /// Looks whether the node still hears what is said to it.
    ///
    /// # Errors
    /// [`RosError::Deaf`]: it has to be started again.
    pub fn check_hearing(&self) -> Result<(), RosError> {
        match &self.transport {
            Some(transport) if !transport.is_listening() => {
                Err(RosError::Deaf { node: transport.node().to_string() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses new requests from now on; open ones go on.
    pub fn stop_accepting(&self) {
        self.gate.shut("the node is shutting down");
    }

    /// Ends the node: what is still open is answered `cancelled`, replies are delivered, threads are joined.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.intake.close();
        self.engine.set(None);
        self.lifecycle.close();
        drop(self.commands.take());
        if let Some(diagnostics) = self.diagnostics.take() {
            diagnostics.close();
        }
        if let Some(outlet) = self.outlet.take()
            && outlet.join().is_err()
        {
            tracing::error!("the thread that sends ROS 2 answers panicked");
        }
        if let Some(rosout) = self.rosout.take() {
            rosout.close();
        }
        if let Some(transport) = self.transport.take() {
            transport.wait_delivered(DELIVERY_WAIT);
        }
    }
}

/// A thread of the node, by a name of at most 15 bytes.
pub(super) fn start_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, RosError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| RosError::Transport {
        what: "starting a thread".to_owned(),
        reason: error.to_string(),
    })
}

impl Drop for RosNode {
    fn drop(&mut self) {
        self.end();
    }
}
