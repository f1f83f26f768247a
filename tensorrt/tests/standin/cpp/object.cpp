// Objects, calls and words.
#include "object.h"

#include <algorithm>
#include <map>

#include "state.h"

namespace standin {

// ---- voice ----------------------------------------------------------------------------------------------------------------------------

void Voice::set_recorder(nvinfer1::IErrorRecorder* recorder) {
    if (recorder == recorder_) return;
    if (recorder != nullptr) recorder->incRefCount();
    if (recorder_ != nullptr) recorder_->decRefCount();
    recorder_ = recorder;
}

void Voice::log(Severity severity, const std::string& text) const {
    if (logger_ != nullptr) logger_->log(severity, text.c_str());
}

void Voice::error(nvinfer1::ErrorCode code, const std::string& where, const std::string& text) const {
    static const std::map<nvinfer1::ErrorCode, const char*> names = {
        {nvinfer1::ErrorCode::kUNSPECIFIED_ERROR, "Unspecified"},   {nvinfer1::ErrorCode::kINTERNAL_ERROR, "Internal Error"},
        {nvinfer1::ErrorCode::kINVALID_ARGUMENT, "API Usage Error"}, {nvinfer1::ErrorCode::kINVALID_CONFIG, "Invalid Config"},
        {nvinfer1::ErrorCode::kFAILED_ALLOCATION, "OutOfMemory"},    {nvinfer1::ErrorCode::kFAILED_EXECUTION, "Execution"},
        {nvinfer1::ErrorCode::kINVALID_STATE, "API Usage Error"},    {nvinfer1::ErrorCode::kUNSUPPORTED_STATE, "Unsupported State"},
    };
    auto found = names.find(code);
    std::string kind = found == names.end() ? "Error" : found->second;
    log(Severity::kERROR, where + ": Error Code " + std::to_string(static_cast<int>(code)) + ": " + kind + " (" + text + ")");
    if (recorder_ != nullptr) recorder_->reportError(code, text.c_str());
}

void Voice::out_of_memory(const std::string& where, const std::string& text) const {
    error(nvinfer1::ErrorCode::kFAILED_ALLOCATION, where, text);
}

// ---- objects --------------------------------------------------------------------------------------------------------------------------

Object::Object(const char* kind, const void* seen, const Object* parent, const Voice& voice, Owner owner)
    : voice(voice), seen_(seen), parent_(parent), owner_(owner) {
    std::lock_guard<std::mutex> lock(state().mutex);
    int number = owner == Owner::caller ? state().next_number(kind) : 1;
    name_ = number == 1 ? kind : std::string(kind) + "#" + std::to_string(number);
    if (seen_ == nullptr) return;
    state().names[seen_] = name_;
    if (owner_ == Owner::caller) state().alive.push_back(this);
}

Object::~Object() {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().names.erase(seen_);
    if (owner_ == Owner::parent) return;
    std::vector<const Object*>& alive = state().alive;
    alive.erase(std::remove(alive.begin(), alive.end(), this), alive.end());
    size_t number = name_.find('#');
    std::string kind = name_.substr(0, number);
    state().write(kind + (number == std::string::npos ? "" : name_.substr(number)) + "::~" + kind + "()");
    for (const Object* other : alive) {
        if (other->parent_ == this) state().write_fault(name_ + " was destroyed before " + other->name_ + ", which is of it");
    }
}

// ---- calls ----------------------------------------------------------------------------------------------------------------------------

Call::Call(const Object* self, const char* kind, const char* method, std::initializer_list<std::string> arguments, bool can_fail)
    : self_(self) {
    std::string text;
    for (const std::string& argument : arguments) text += (text.empty() ? "" : ", ") + argument;
    std::lock_guard<std::mutex> lock(state().mutex);
    size_t number = self == nullptr ? std::string::npos : self->name().find('#');
    std::string object = std::string(kind) + (number == std::string::npos ? "" : self->name().substr(number));
    std::string prefix = *kind == '\0' ? "" : object + "::";
    state().write(prefix + method + "(" + text + ")");
    method_ = *kind == '\0' ? method : std::string(kind) + "::" + method;
    how_ = state().how_to_fail(method_, can_fail);
}

bool Call::fails() const { return how_ >= 0 && fails(self_ == nullptr ? Voice(nullptr) : self_->voice); }

bool Call::fails(const Voice& voice) const {
    if (how_ < 0) return false;
    if (how_ == STANDIN_ERROR) voice.error(nvinfer1::ErrorCode::kINTERNAL_ERROR, method_, "told to fail");
    if (how_ == STANDIN_OOM) {
        voice.out_of_memory(method_, "Requested size was 1073741824 bytes, told to have none");
    }
    return true;
}

// ---- text -----------------------------------------------------------------------------------------------------------------------------

std::string dims_text(const nvinfer1::Dims& dims) {
    std::string text;
    for (int i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ",") + std::to_string(dims.d[i]);
    return "[" + text + "]";
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string pointer_name(const void* pointer) {
    if (pointer == nullptr) return "null";
    std::lock_guard<std::mutex> lock(state().mutex);
    auto found = state().names.find(pointer);
    if (found != state().names.end()) return found->second;
    auto [number, _] = state().numbers.emplace(pointer, state().numbers.size() + 1);
    return "@" + std::to_string(number->second);
}

}  // namespace standin
