//! ROS 2's own interfaces, as far as the node speaks them.

use super::interface::message;
use super::{Byte, Time};

message! {
    /// A text.
    pub struct Text = "std_msgs" Msg "String" {
        /// The text.
        pub data: String,
    }

    /// When and in which frame.
    pub struct Header = "std_msgs" Msg "Header" {
        /// When.
        pub stamp: Time,
        /// Frame; empty here.
        pub frame_id: String,
    }

    /// Simulated time.
    pub struct Clock = "rosgraph_msgs" Msg "Clock" {
        /// Now.
        pub clock: Time,
    }

    /// One line of the log, on `/rosout`.
    pub struct Log = "rcl_interfaces" Msg "Log" {
        /// When.
        pub stamp: Time,
        /// 10 debug, 20 info, 30 warn, 40 error, 50 fatal.
        pub level: u8,
        /// Who says it.
        pub name: String,
        /// What.
        pub msg: String,
        /// Source file.
        pub file: String,
        /// Function.
        pub function: String,
        /// Source line.
        pub line: u32,
    }

    /// A figure beside a status.
    pub struct KeyValue = "diagnostic_msgs" Msg "KeyValue" {
        /// What it is.
        pub key: String,
        /// How much.
        pub value: String,
    }

    /// How well a part is.
    pub struct DiagnosticStatus = "diagnostic_msgs" Msg "DiagnosticStatus" {
        /// A [`super::Level`].
        pub level: Byte,
        /// `node: part`, which aggregators group by.
        pub name: String,
        /// In words.
        pub message: String,
        /// Which device.
        pub hardware_id: String,
        /// Figures.
        pub values: Vec<KeyValue>,
    }

    /// How well all parts are.
    pub struct DiagnosticArray = "diagnostic_msgs" Msg "DiagnosticArray" {
        /// When.
        pub header: Header,
        /// Each part.
        pub status: Vec<DiagnosticStatus>,
    }

    /// Identity of a goal.
    #[derive(Copy, Eq, Hash)]
    pub struct Uuid = "unique_identifier_msgs" Msg "UUID" {
        /// 128 bits; all zero for none.
        pub uuid: [u8; 16],
    }

    /// A goal and when it was accepted.
    #[derive(Copy, Eq)]
    pub struct GoalInfo = "action_msgs" Msg "GoalInfo" {
        /// Which.
        pub goal_id: Uuid,
        /// When it was accepted.
        pub stamp: Time,
    }

    /// How far a goal is.
    #[derive(Copy, Eq)]
    pub struct GoalStatus = "action_msgs" Msg "GoalStatus" {
        /// Which.
        pub goal_info: GoalInfo,
        /// 1 accepted, 2 executing, 3 canceling, 4 succeeded, 5 canceled, 6 aborted.
        pub status: i8,
    }

    /// Every goal that is remembered.
    pub struct GoalStatusArray = "action_msgs" Msg "GoalStatusArray" {
        /// Each.
        pub status_list: Vec<GoalStatus>,
    }

    /// Which goals to cancel.
    pub struct CancelGoalRequest = "action_msgs" Srv "CancelGoal_Request" {
        /// An identity, a time, both or neither.
        pub goal_info: GoalInfo,
    }

    /// Which goals are being cancelled.
    pub struct CancelGoalResponse = "action_msgs" Srv "CancelGoal_Response" {
        /// 0 some are, 1 rejected, 2 no such goal, 3 it has ended.
        pub return_code: i8,
        /// Each of them.
        pub goals_canceling: Vec<GoalInfo>,
    }

    /// A lifecycle state.
    pub struct LifecycleState = "lifecycle_msgs" Msg "State" {
        /// Its number.
        pub id: u8,
        /// Its name.
        pub label: String,
    }

    /// A lifecycle transition.
    pub struct LifecycleTransition = "lifecycle_msgs" Msg "Transition" {
        /// Its number.
        pub id: u8,
        /// Its name.
        pub label: String,
    }

    /// A transition with where it starts and ends.
    pub struct TransitionDescription = "lifecycle_msgs" Msg "TransitionDescription" {
        /// Which.
        pub transition: LifecycleTransition,
        /// From.
        pub start_state: LifecycleState,
        /// To.
        pub goal_state: LifecycleState,
    }

    /// A transition that happened.
    pub struct TransitionEvent = "lifecycle_msgs" Msg "TransitionEvent" {
        /// When, in nanoseconds.
        pub timestamp: u64,
        /// Which.
        pub transition: LifecycleTransition,
        /// From.
        pub start_state: LifecycleState,
        /// To.
        pub goal_state: LifecycleState,
    }

    /// Request of `ChangeState`.
    pub struct ChangeStateRequest = "lifecycle_msgs" Srv "ChangeState_Request" {
        /// By name, or by number without one.
        pub transition: LifecycleTransition,
    }

    /// Response of `ChangeState`.
    pub struct ChangeStateResponse = "lifecycle_msgs" Srv "ChangeState_Response" {
        /// Whether it happened.
        pub success: bool,
    }

    /// Request of `GetState`.
    pub struct GetStateRequest = "lifecycle_msgs" Srv "GetState_Request" {
    }

    /// Response of `GetState`.
    pub struct GetStateResponse = "lifecycle_msgs" Srv "GetState_Response" {
        /// The state.
        pub current_state: LifecycleState,
    }

    /// Response of `GetAvailableStates`.
    pub struct GetAvailableStatesResponse = "lifecycle_msgs" Srv "GetAvailableStates_Response" {
        /// Every state there is.
        pub available_states: Vec<LifecycleState>,
    }

    /// Response of `GetAvailableTransitions`.
    pub struct GetAvailableTransitionsResponse = "lifecycle_msgs" Srv "GetAvailableTransitions_Response" {
        /// What can be done now, or ever (`~/get_transition_graph`).
        pub available_transitions: Vec<TransitionDescription>,
    }

    /// A parameter's value: the type says which field counts.
    pub struct ParameterValue = "rcl_interfaces" Msg "ParameterValue" {
        /// 0 not set, 1 bool, 2 integer, 3 double, 4 string, 5 bytes, 6 bools, 7 integers, 8 doubles, 9 strings.
        pub r#type: u8,
        /// Type 1.
        pub bool_value: bool,
        /// Type 2.
        pub integer_value: i64,
        /// Type 3.
        pub double_value: f64,
        /// Type 4.
        pub string_value: String,
        /// Type 5.
        pub byte_array_value: Vec<Byte>,
        /// Type 6.
        pub bool_array_value: Vec<bool>,
        /// Type 7.
        pub integer_array_value: Vec<i64>,
        /// Type 8.
        pub double_array_value: Vec<f64>,
        /// Type 9.
        pub string_array_value: Vec<String>,
    }

    /// A parameter.
    pub struct Parameter = "rcl_interfaces" Msg "Parameter" {
        /// Its name.
        pub name: String,
        /// Its value.
        pub value: ParameterValue,
    }

    /// Range of a floating point parameter.
    #[derive(Copy)]
    pub struct FloatingPointRange = "rcl_interfaces" Msg "FloatingPointRange" {
        /// Least.
        pub from_value: f64,
        /// Most.
        pub to_value: f64,
        /// 0 for any.
        pub step: f64,
    }

    /// Range of an integer parameter.
    #[derive(Copy, Eq)]
    pub struct IntegerRange = "rcl_interfaces" Msg "IntegerRange" {
        /// Least.
        pub from_value: i64,
        /// Most.
        pub to_value: i64,
        /// 0 or 1 for any.
        pub step: u64,
    }

    /// What a parameter is.
    pub struct ParameterDescriptor = "rcl_interfaces" Msg "ParameterDescriptor" {
        /// Its name.
        pub name: String,
        /// As in [`ParameterValue`].
        pub r#type: u8,
        /// In words.
        pub description: String,
        /// What no range says.
        pub additional_constraints: String,
        /// Never changes.
        pub read_only: bool,
        /// May change its type.
        pub dynamic_typing: bool,
        /// Of a floating point parameter.
        pub floating_point_range: Option<FloatingPointRange>,
        /// Of an integer parameter.
        pub integer_range: Option<IntegerRange>,
    }

    /// Whether setting worked.
    pub struct SetParametersResult = "rcl_interfaces" Msg "SetParametersResult" {
        /// Whether.
        pub successful: bool,
        /// Why not.
        pub reason: String,
    }

    /// Parameters that changed, on `/parameter_events`.
    pub struct ParameterEvent = "rcl_interfaces" Msg "ParameterEvent" {
        /// When.
        pub stamp: Time,
        /// Whose.
        pub node: String,
        /// Declared.
        pub new_parameters: Vec<Parameter>,
        /// Changed.
        pub changed_parameters: Vec<Parameter>,
        /// Gone.
        pub deleted_parameters: Vec<Parameter>,
    }

    /// Names below prefixes.
    pub struct ListParametersResult = "rcl_interfaces" Msg "ListParametersResult" {
        /// Parameters.
        pub names: Vec<String>,
        /// Groups.
        pub prefixes: Vec<String>,
    }

    /// Request of `GetParameters`, `GetParameterTypes` and `DescribeParameters`.
    pub struct NamesRequest = "rcl_interfaces" Srv "GetParameters_Request" {
        /// Of which parameters.
        pub names: Vec<String>,
    }

    /// Response of `GetParameters`.
    pub struct GetParametersResponse = "rcl_interfaces" Srv "GetParameters_Response" {
        /// In the order of the names.
        pub values: Vec<ParameterValue>,
    }

    /// Response of `GetParameterTypes`.
    pub struct GetParameterTypesResponse = "rcl_interfaces" Srv "GetParameterTypes_Response" {
        /// In the order of the names.
        pub types: Vec<u8>,
    }

    /// Response of `DescribeParameters`.
    pub struct DescribeParametersResponse = "rcl_interfaces" Srv "DescribeParameters_Response" {
        /// In the order of the names.
        pub descriptors: Vec<ParameterDescriptor>,
    }

    /// Request of `SetParameters` and `SetParametersAtomically`.
    pub struct SetParametersRequest = "rcl_interfaces" Srv "SetParameters_Request" {
        /// The new values.
        pub parameters: Vec<Parameter>,
    }

    /// Response of `SetParameters`.
    pub struct SetParametersResponse = "rcl_interfaces" Srv "SetParameters_Response" {
        /// One for each, in order.
        pub results: Vec<SetParametersResult>,
    }

    /// Response of `SetParametersAtomically`.
    pub struct SetParametersAtomicallyResponse = "rcl_interfaces" Srv "SetParametersAtomically_Response" {
        /// One for all.
        pub result: SetParametersResult,
    }

    /// Request of `ListParameters`.
    pub struct ListParametersRequest = "rcl_interfaces" Srv "ListParameters_Request" {
        /// Below which; none for all.
        pub prefixes: Vec<String>,
        /// How many dots deep; 0 for any depth.
        pub depth: u64,
    }

    /// Response of `ListParameters`.
    pub struct ListParametersResponse = "rcl_interfaces" Srv "ListParameters_Response" {
        /// What there is.
        pub result: ListParametersResult,
    }
}
