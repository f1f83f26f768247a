// The ONNX parser: reads a model and its data, and says what it does not know.
#include <algorithm>
#include <fstream>

#include "network.h"

namespace standin {
namespace {

using nvonnxparser::ErrorCode;

// Operators that older parsers do not have.
struct Since {
    const char* op_type;
    int major, minor;
};
constexpr Since SINCE[] = {{"Attention", 10, 14}, {"RMSNormalization", 10, 15}, {"RotaryEmbedding", 10, 15}, {"TensorScatter", 10, 15}};

class ParserError final : public of_nvonnxparser::RecordedParserError, public Object {
public:
    ParserError(ErrorCode code, std::string desc, int node, std::string name, std::string op_type, const Object* parser)
        : Object("IParserError", static_cast<nvonnxparser::IParserError*>(this), parser, Voice(nullptr), Owner::parent),
          code_(code), desc_(std::move(desc)), node_(node), name_(std::move(name)), op_type_(std::move(op_type)) {
        self = this;
    }
    ErrorCode on_code() const override { return code_; }
    char const* on_desc() const override { return desc_.c_str(); }
    char const* on_file() const override { return "parser.cpp"; }
    int on_line() const override { return 1; }
    char const* on_func() const override { return "parse"; }
    int on_node() const override { return node_; }
    char const* on_nodeName() const override { return name_.c_str(); }
    char const* on_nodeOperator() const override { return op_type_.c_str(); }

private:
    ErrorCode code_;
    std::string desc_;
    int node_;
    std::string name_, op_type_;
};

bool read_file(const std::string& path, Bytes* bytes) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return false;
    bytes->assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    return !file.bad();
}

class Parser final : public of_nvonnxparser::RecordedParser, public Object {
public:
    Parser(Network& network, nvinfer1::ILogger* logger)
        : Object("IParser", static_cast<nvonnxparser::IParser*>(this), &network, Voice(logger)), network_(network) {
        self = this;
    }
    bool on_parseFromFile(char const* path, int verbosity) noexcept override;
    bool on_supportsOperator(char const* op_type) const noexcept override { return is_known(op_type); }
    int on_getNbErrors() const noexcept override { return int(errors_.size()); }
    nvonnxparser::IParserError const* on_getError(int index) const noexcept override {
        return index < 0 || index >= int(errors_.size()) ? nullptr : errors_[size_t(index)].get();
    }
    void on_clearErrors() noexcept override { errors_.clear(); }

private:
    bool fail(ErrorCode code, const std::string& text, int node = -1) {
        const Node* at = node < 0 ? nullptr : &model_.nodes[size_t(node)];
        std::string name = at == nullptr ? "" : at->name, op_type = at == nullptr ? "" : at->op_type;
        std::string where = at == nullptr ? "" : "In node " + std::to_string(node) + " with name: " + name + " and operator: " + op_type + " ";
        voice.log(Severity::kERROR, where + "(parse): " + text);
        errors_.push_back(std::make_unique<ParserError>(code, text, node, name, op_type, this));
        return false;
    }
    static bool is_known(const std::string& op_type) {
        auto is_later = [&](const Since& since) { return op_type == since.op_type && !is_at_least(since.major, since.minor); };
        return !is_refused(op_type) && std::none_of(std::begin(SINCE), std::end(SINCE), is_later);
    }
    bool read_data(const std::string& folder);
    bool check_nodes();
    bool check_ports(const std::vector<Port>& ports);

    Network& network_;
    Model model_;
    std::vector<File> files_;
    std::vector<std::unique_ptr<ParserError>> errors_;
};

bool Parser::read_data(const std::string& folder) {
    for (const Constant& constant : model_.constants) {
        bool is_known = constant.file.empty() ||
                        std::any_of(files_.begin() + 1, files_.end(), [&](const File& file) { return file.name == constant.file; });
        if (!is_known) {
            File file{constant.file, {}};
            if (!read_file(folder + file.name, &file.bytes)) {
                return fail(ErrorCode::kMODEL_DESERIALIZE_FAILED, "Failed to open file: " + folder + file.name);
            }
            files_.push_back(std::move(file));
        }
        if (constant.num_bytes != 0 && place_of(files_, constant) == nullptr) {
            return fail(ErrorCode::kMODEL_DESERIALIZE_FAILED, "The data of initializer " + constant.name + " is not within " + constant.file);
        }
    }
    std::sort(files_.begin() + 1, files_.end(), [](const File& a, const File& b) { return a.name < b.name; });
    return true;
}

bool Parser::check_nodes() {
    for (size_t i = 0; i < model_.nodes.size(); ++i) {
        const std::string& op_type = model_.nodes[i].op_type;
        if (is_known(op_type)) continue;
        return fail(ErrorCode::kUNSUPPORTED_NODE, "No importer registered for op: " + op_type + ". Attempting to import as plugin. Plugin not found.", int(i));
    }
    return true;
}

bool Parser::check_ports(const std::vector<Port>& ports) {
    for (const Port& port : ports) {
        if (port.type < 0) return fail(ErrorCode::kUNSUPPORTED_GRAPH, "Unsupported data type of " + port.name);
        if (port.dims.size() > size_t(nvinfer1::Dims::MAX_DIMS)) return fail(ErrorCode::kUNSUPPORTED_GRAPH, "Too many dimensions of " + port.name);
    }
    return true;
}

bool Parser::on_parseFromFile(char const* path, int) noexcept {
    std::string name = path == nullptr ? "" : path;
    size_t slash = name.rfind('/');
    std::string folder = slash == std::string::npos ? "" : name.substr(0, slash + 1);
    model_ = Model();
    files_ = {{name.substr(folder.size()), {}}};
    if (!read_file(name, &files_[0].bytes)) return fail(ErrorCode::kMODEL_DESERIALIZE_FAILED, "Failed to open file: " + name);
    std::string wrong = read_model(files_[0].bytes, &model_);
    if (!wrong.empty()) return fail(ErrorCode::kMODEL_DESERIALIZE_FAILED, "Failed to parse ONNX model from file: " + name + ": " + wrong);
    if (!check_ports(model_.inputs) || !check_ports(model_.outputs) || !check_nodes() || !read_data(folder)) return false;
    network_.set_model(std::move(model_), std::move(files_));
    return true;
}

}  // namespace
}  // namespace standin

// For libnvonnxparser, which is a library of its own.
EXPORTED void* standin_new_parser(void* network, void* logger, int version) {
    using namespace standin;
    Call call(nullptr, "", "createNvOnnxParser_INTERNAL", {pointer_name(network), pointer_name(logger), std::to_string(version)}, true);
    auto* words = static_cast<nvinfer1::ILogger*>(logger);
    if (call.fails(Voice(words))) return nullptr;
    auto* of = dynamic_cast<Network*>(static_cast<nvinfer1::INetworkDefinition*>(network));
    if (of == nullptr || version != NV_ONNX_PARSER_VERSION) return nullptr;
    return static_cast<nvonnxparser::IParser*>(new Parser(*of, words));
}

