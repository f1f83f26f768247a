//! Tests: the structures against the hashes by which a ROS 2 Jazzy, built from its sources, knows its interfaces and ours. A hash covers
//! names, types and order of all fields, those of nested structures included.

use super::*;

type Hash = fn() -> TypeHash;

const KNOWN: [(Hash, &str); 50] = [
    (TypeHash::of::<Text>, "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"),
    (TypeHash::of::<Header>, "RIHS01_f49fb3ae2cf070f793645ff749683ac6b06203e41c891e17701b1cb597ce6a01"),
    (TypeHash::of::<Clock>, "RIHS01_692f7a66e93a3c83e71765d033b60349ba68023a8c689a79e48078bcb5c58564"),
    (TypeHash::of::<Log>, "RIHS01_e28ce254ca8abc06abf92773b74602cdbf116ed34fbaf294fb9f81da9f318eac"),
    (TypeHash::of::<KeyValue>, "RIHS01_d68081eaa540288c5440753baecef0c4e16e81a5f78ad68902ded5100413bb42"),
    (
        TypeHash::of::<DiagnosticStatus>,
        "RIHS01_b0e3e692ea2d54a8af2f4ef1930e81556a2db55216b771f8a7d2724ed47bf0e4",
    ),
    (
        TypeHash::of::<DiagnosticArray>,
        "RIHS01_5a8a36efb05fb25070fa0fb3810290c0e6cd4862b54a8fb975a1ee8dc55a333e",
    ),
    (TypeHash::of::<Uuid>, "RIHS01_1b8e8aca958cbea28fe6ef60bf6c19b683c97a9ef60bb34752067d0f2f7ab437"),
    (TypeHash::of::<GoalInfo>, "RIHS01_6398fe763154554353930716b225947f93b672f0fb2e49fdd01bb7a7e37933e9"),
    (TypeHash::of::<GoalStatus>, "RIHS01_32f4cfd717735d17657e1178f24431c1ce996c878c515230f6c5b3476819dbb9"),
    (
        TypeHash::of::<GoalStatusArray>,
        "RIHS01_6c1684b00f177d37438febe6e709fc4e2b0d4248dca4854946f9ed8b30cda83e",
    ),
    (
        TypeHash::of::<CancelGoalRequest>,
        "RIHS01_3d3c84653c1f96918086887e1dcb236faec88b81a5b14fd4cf4840065bcdf8af",
    ),
    (
        TypeHash::of::<CancelGoalResponse>,
        "RIHS01_35e682cf3f510e83c70a82a4aac888496dedee56773bf9d8e5e0aa81f9e1c960",
    ),
    (
        TypeHash::of::<LifecycleState>,
        "RIHS01_dd2d02b82f3ebc858e53c431b1e6e91f3ffc71436fc81d0715214ac6ee2107a0",
    ),
    (
        TypeHash::of::<LifecycleTransition>,
        "RIHS01_c65d7b31ea134cba4f54fc867b817979be799f7452035cd35fac9b7421fb3424",
    ),
    (
        TypeHash::of::<TransitionDescription>,
        "RIHS01_c5f1cd4bb1ad2ba0e3329d4ac7015c52a674a72c1faf7974c37a33f4f6048b28",
    ),
    (
        TypeHash::of::<TransitionEvent>,
        "RIHS01_d5f8873a2f0146498f812d7885c7327ce27e463d36811d8792f35ee38c0d6c38",
    ),
    (
        TypeHash::of::<ChangeStateRequest>,
        "RIHS01_d74c6f524e14cade7b67e7297190360ed749264af300524fc1456f27cc2a553a",
    ),
    (
        TypeHash::of::<ChangeStateResponse>,
        "RIHS01_e1ddfed0271fefe63767aa71561926e4d9eac0f1ddf9e71a8873eb46b36deac2",
    ),
    (
        TypeHash::of::<GetStateRequest>,
        "RIHS01_77a9c844e7975f15bc2221e8bbebafc4d118afb78c7f7071eef91f83f940f2f6",
    ),
    (
        TypeHash::of::<GetStateResponse>,
        "RIHS01_fe249babab472e42cb5653b5d6a6b0c42a003b0fdfb84851aea3fde08760b4f5",
    ),
    (
        TypeHash::of::<GetAvailableStatesResponse>,
        "RIHS01_223e0dd5bb8a847ebb9532adaf8b5e2a97e6e68e79faeaabd81a45fb32925bd1",
    ),
    (
        TypeHash::of::<GetAvailableTransitionsResponse>,
        "RIHS01_4711339461aadf02bcfff797a198de911f885074bd3f2fe9f7b677ef87f0741c",
    ),
    (
        TypeHash::of::<ParameterValue>,
        "RIHS01_115fc089a387e23c7ecd3525c9189c379109119d6ab82e8dfbde0fdf6a7f9b68",
    ),
    (TypeHash::of::<Parameter>, "RIHS01_ddfe6442cffc462317adb5c92536a7b6dd55858c5c3e1e328165a6b73c2831af"),
    (
        TypeHash::of::<FloatingPointRange>,
        "RIHS01_e6af23a23c177fee5f3075c8b1e435162a9b63c863d78c06017460b49684262d",
    ),
    (TypeHash::of::<IntegerRange>, "RIHS01_f7b7fdc0f65f07702e099218e13288c3963bcb9345bde78b560e6cd19800fc5a"),
    (
        TypeHash::of::<ParameterDescriptor>,
        "RIHS01_52175dbfda6c51153101d33d2a9da05743f66f02d5ab2ca9ec4709b46b73d704",
    ),
    (
        TypeHash::of::<SetParametersResult>,
        "RIHS01_cfcc0fb0371ee5159b403960ef4300f8f9d2f1fd6117c8666b7f9654d528a9b1",
    ),
    (
        TypeHash::of::<ParameterEvent>,
        "RIHS01_043e627780fcad87a22d225bc2a037361dba713fca6a6b9f4b869a5aa0393204",
    ),
    (
        TypeHash::of::<ListParametersResult>,
        "RIHS01_237ae3428413dcbcfb452b510c42355f3a2b021dc091afa3e18526d57022f1cd",
    ),
    (TypeHash::of::<NamesRequest>, "RIHS01_135a9e1c3d7cebef792f6687d7ddf99949b21a0bd9a320d863a9110a3f5cf4d6"),
    (
        TypeHash::of::<GetParametersResponse>,
        "RIHS01_9fa773b46e39cc5d02db6224d8fd520bb9caeeffc2b27c96c1e59431baba9f2a",
    ),
    (
        TypeHash::of::<GetParameterTypesResponse>,
        "RIHS01_ac1335dce67c478e669434f6ac2fbff34fcd529580f272d3006785ba8b54e47f",
    ),
    (
        TypeHash::of::<DescribeParametersResponse>,
        "RIHS01_ad6747319613c6131589e062e095b469a46cc764f7d0f12a001a49e6cd893995",
    ),
    (
        TypeHash::of::<SetParametersRequest>,
        "RIHS01_130d46386b7e84ea9ecf60608a4d83cbe5e5cb7c6cc5b712b7a4e3a6c254e932",
    ),
    (
        TypeHash::of::<SetParametersResponse>,
        "RIHS01_7a0e8140a0b8d98308fa81a5403a766e610af29a239caf54b7553227906fc266",
    ),
    (
        TypeHash::of::<SetParametersAtomicallyResponse>,
        "RIHS01_31b1a38c5b0b9d893ee24da45f69638f4561c78461d82d52750f429b534502b8",
    ),
    (
        TypeHash::of::<ListParametersRequest>,
        "RIHS01_a1b0b5d6b967a5b8ac5bc8563c3ea678f349e312a6a4967227c5a96bc5ce38df",
    ),
    (
        TypeHash::of::<ListParametersResponse>,
        "RIHS01_31b937b82de3612426be79f231e386259f97e8dc843e3f2845288b4bfa296bdd",
    ),
    (TypeHash::of::<ChatMessage>, "RIHS01_8f7d39e12f3f46bfb70f052584a23799facd1f7619b0ca3150057ae92607e3e4"),
    (TypeHash::of::<Sampling>, "RIHS01_aaedb8ed653ff78782983b0cef369891ad69fd7c6781747bd3f92a39899f5268"),
    (TypeHash::of::<Question>, "RIHS01_b61aec4d09ab795e140cc571179eb4fb3dafb3e387da593f2d1cbb4340deacc1"),
    (TypeHash::of::<Answer>, "RIHS01_47a3550bb18436d52b8f2306342444490d9fb2f295b192848ce6d3cb2e883e21"),
    (TypeHash::of::<Token>, "RIHS01_3f22fec825ff9accef1d72cc48ad87c8c8f12143c7930294dab5d36d0dcb8554"),
    (TypeHash::of::<Feedback>, "RIHS01_cab04551f3169162281b036e006ebe13a1447b9087f901f49116a2143a149e8b"),
    (
        TypeHash::of::<EngineInfoRequest>,
        "RIHS01_46a1846c376b0af00efa8ef48870ab1ab2b6bff750b2fb874424d3bb25ea6cd5",
    ),
    (TypeHash::of::<EngineInfo>, "RIHS01_8c9d72d8f70c48992af9323b45e1b7d3bc574b2783b648ea341106f9afd1a1c8"),
    (TypeHash::of::<Time>, "RIHS01_b106235e25a4c5ed35098aa0a61a3ee9c9b18d197f398b0e4206cea9acf9c197"),
    (TypeHash::of::<RosDuration>, "RIHS01_e8d009f659816f758b75334ee1a9ca5b5c0b859843261f14c7f937349599d93b"),
];

#[test]
fn every_structure_is_the_interface_that_ros_2_knows() {
    for (hash, known) in KNOWN {
        let found = hash().to_string();
        assert_eq!(found, known);
    }
}
