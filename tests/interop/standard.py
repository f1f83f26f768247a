"""ROS 2's own interfaces, copied by hand from their public definitions and not from Takt: the order of fields is a check of Takt's.

Comments and constants are left out. `=== NAME` begins an interface.
"""

TEXT = """
=== std_msgs/msg/String
string data
=== std_msgs/msg/Header
builtin_interfaces/Time stamp
string frame_id
=== builtin_interfaces/msg/Time
int32 sec
uint32 nanosec
=== builtin_interfaces/msg/Duration
int32 sec
uint32 nanosec
=== rosgraph_msgs/msg/Clock
builtin_interfaces/Time clock
=== unique_identifier_msgs/msg/UUID
uint8[16] uuid

=== action_msgs/msg/GoalInfo
unique_identifier_msgs/UUID goal_id
builtin_interfaces/Time stamp
=== action_msgs/msg/GoalStatus
action_msgs/GoalInfo goal_info
int8 status
=== action_msgs/msg/GoalStatusArray
action_msgs/GoalStatus[] status_list
=== action_msgs/srv/CancelGoal
action_msgs/GoalInfo goal_info
---
int8 return_code
action_msgs/GoalInfo[] goals_canceling

=== diagnostic_msgs/msg/KeyValue
string key
string value
=== diagnostic_msgs/msg/DiagnosticStatus
byte level
string name
string message
string hardware_id
diagnostic_msgs/KeyValue[] values
=== diagnostic_msgs/msg/DiagnosticArray
std_msgs/Header header
diagnostic_msgs/DiagnosticStatus[] status

=== rcl_interfaces/msg/Log
builtin_interfaces/Time stamp
uint8 level
string name
string msg
string file
string function
uint32 line
=== rcl_interfaces/msg/ParameterValue
uint8 type
bool bool_value
int64 integer_value
float64 double_value
string string_value
byte[] byte_array_value
bool[] bool_array_value
int64[] integer_array_value
float64[] double_array_value
string[] string_array_value
=== rcl_interfaces/msg/Parameter
string name
rcl_interfaces/ParameterValue value
=== rcl_interfaces/msg/ParameterEvent
builtin_interfaces/Time stamp
string node
rcl_interfaces/Parameter[] new_parameters
rcl_interfaces/Parameter[] changed_parameters
rcl_interfaces/Parameter[] deleted_parameters
=== rcl_interfaces/msg/FloatingPointRange
float64 from_value
float64 to_value
float64 step
=== rcl_interfaces/msg/IntegerRange
int64 from_value
int64 to_value
uint64 step
=== rcl_interfaces/msg/ParameterDescriptor
string name
uint8 type
string description
string additional_constraints
bool read_only
bool dynamic_typing
rcl_interfaces/FloatingPointRange[<=1] floating_point_range
rcl_interfaces/IntegerRange[<=1] integer_range
=== rcl_interfaces/msg/SetParametersResult
bool successful
string reason
=== rcl_interfaces/msg/ListParametersResult
string[] names
string[] prefixes
=== rcl_interfaces/srv/GetParameters
string[] names
---
rcl_interfaces/ParameterValue[] values
=== rcl_interfaces/srv/GetParameterTypes
string[] names
---
uint8[] types
=== rcl_interfaces/srv/DescribeParameters
string[] names
---
rcl_interfaces/ParameterDescriptor[] descriptors
=== rcl_interfaces/srv/ListParameters
string[] prefixes
uint64 depth
---
rcl_interfaces/ListParametersResult result
=== rcl_interfaces/srv/SetParameters
rcl_interfaces/Parameter[] parameters
---
rcl_interfaces/SetParametersResult[] results
=== rcl_interfaces/srv/SetParametersAtomically
rcl_interfaces/Parameter[] parameters
---
rcl_interfaces/SetParametersResult result

=== lifecycle_msgs/msg/State
uint8 id
string label
=== lifecycle_msgs/msg/Transition
uint8 id
string label
=== lifecycle_msgs/msg/TransitionDescription
lifecycle_msgs/Transition transition
lifecycle_msgs/State start_state
lifecycle_msgs/State goal_state
=== lifecycle_msgs/msg/TransitionEvent
uint64 timestamp
lifecycle_msgs/Transition transition
lifecycle_msgs/State start_state
lifecycle_msgs/State goal_state
=== lifecycle_msgs/srv/ChangeState
lifecycle_msgs/Transition transition
---
bool success
=== lifecycle_msgs/srv/GetState
---
lifecycle_msgs/State current_state
=== lifecycle_msgs/srv/GetAvailableStates
---
lifecycle_msgs/State[] available_states
=== lifecycle_msgs/srv/GetAvailableTransitions
---
lifecycle_msgs/TransitionDescription[] available_transitions

=== rmw_dds_common/msg/Gid
uint8[16] data
=== rmw_dds_common/msg/NodeEntitiesInfo
string node_namespace
string node_name
rmw_dds_common/Gid[] reader_gid_seq
rmw_dds_common/Gid[] writer_gid_seq
=== rmw_dds_common/msg/ParticipantEntitiesInfo
rmw_dds_common/Gid gid
rmw_dds_common/NodeEntitiesInfo[] node_entities_info_seq
"""
