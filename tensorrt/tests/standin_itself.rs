//! The stand-in for TensorRT, by itself: what its generator makes of headers, and that it loads.

mod standin;

use standin::{Standin, generator};

const HEADER: &str = r#"
namespace std { template <typename T> class vector { virtual void not_ours() = 0; }; }
namespace nvinfer1 {
enum class Mode : int32_t { kSLOW = 0, kFAST [[deprecated]] = 1, kQUICK = kFAST, };
class IThing;
namespace apiv {
class VRoot { public: virtual ~VRoot() noexcept = default; };
class VThing : public VRoot
{
public:
    [[nodiscard]] virtual bool setMode(Mode mode, char const* const* names, int32_t = 3) noexcept = 0;
    virtual IThing* getPImpl() noexcept = 0;
    virtual std::size_t size(std::size_t, int64_t const index) const noexcept
        = 0;
    virtual int inlined() { return 1; }
    __attribute__((deprecated)) virtual Mode getMode() const noexcept = 0;
};
}
class IThing { public: virtual void the_callers() = 0; };
}
namespace nvonnxparser { class IParser { public: virtual bool parse(void const* model, size_t size, const char* path = nullptr) noexcept = 0; virtual ~IParser() noexcept = default; }; }
"#;

#[test]
fn the_librarys_classes_are_read_and_no_others() {
    let headers = generator::parse(HEADER);
    let classes: Vec<_> =
        headers.classes.iter().map(|class| (class.namespace.as_str(), class.name.as_str())).collect();
    assert_eq!(classes, [("nvinfer1::apiv", "VThing"), ("nvonnxparser", "IParser")]);
    let signature = |method: &generator::Method| {
        let kinds: Vec<_> = method.parameters.iter().map(|parameter| parameter.kind.as_str()).collect();
        format!("{} {}({}) {}", method.result, method.name, kinds.join(", "), method.qualifiers)
    };
    let methods: Vec<_> = headers.classes.iter().flat_map(|class| &class.methods).map(signature).collect();
    assert_eq!(
        methods,
        [
            "bool setMode(Mode, char const * const *, int32_t) noexcept",
            "IThing * getPImpl() noexcept",
            "std :: size_t size(std :: size_t, int64_t const) const noexcept",
            "Mode getMode() const noexcept",
            "bool parse(void const *, size_t, const char *) noexcept",
        ]
    );
    let enumerations: Vec<_> =
        headers.enumerations.iter().map(|found| (found.name.as_str(), found.enumerators.join(" "))).collect();
    assert_eq!(enumerations, [("nvinfer1::Mode", "kSLOW kFAST kQUICK".to_owned())]);
}

#[test]
fn every_method_is_recorded_and_the_ones_that_do_something_can_fail() {
    let (header, source) = generator::emit(&generator::parse(HEADER));
    assert!(header.contains("class RecordedThing : public nvinfer1::apiv::VThing {"), "{header}");
    assert!(header.contains("#define STANDIN_HAS_VThing_setMode 1"), "{header}");
    assert!(source.contains(r#"standin::Call call(self, "IThing", "setMode", {standin::show(a0), standin::show(a1), standin::show(a2)}, true);"#), "{source}");
    assert!(source.contains(r#"standin::Call call(self, "IThing", "getMode", {}, false);"#), "{source}");
    assert!(source.contains(r#"if (value == nvinfer1::Mode::kFAST) return "kFAST";"#), "{source}");
}

#[test]
fn it_loads_and_nothing_is_alive() {
    let Some(standin) = Standin::load() else { return };
    assert_eq!(standin.alive(), [""; 0]);
    assert_eq!(standin.faults(), [""; 0]);
    assert_eq!(standin.record(), [""; 0]);
    assert!(standin.built().folder.join(standin.built().parser_name()).is_file());
}
