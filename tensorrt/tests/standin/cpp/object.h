// What all of the stand-in is made of: objects that are known by name, calls that are written down and can be told to fail, words for the
// caller's logger and error recorder.
#pragma once

#include <NvInfer.h>
#include <NvOnnxParser.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

#include "../standin.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace standin {

using Severity = nvinfer1::ILogger::Severity;

// Where an object's words go. Children share their parent's; a recorder is asked for when there is something to say.
class Voice {
public:
    explicit Voice(nvinfer1::ILogger* logger) : logger_(logger) {}
    Voice(const Voice& other) : logger_(other.logger_) { set_recorder(other.recorder_); }
    Voice& operator=(const Voice&) = delete;
    ~Voice() { set_recorder(nullptr); }

    void set_recorder(nvinfer1::IErrorRecorder* recorder);
    nvinfer1::IErrorRecorder* recorder() const { return recorder_; }
    nvinfer1::ILogger* logger() const { return logger_; }
    void log(Severity severity, const std::string& text) const;
    // Logs an error as TensorRT words it, and tells the recorder.
    void error(nvinfer1::ErrorCode code, const std::string& where, const std::string& text) const;
    void out_of_memory(const std::string& where, const std::string& text) const;

private:
    nvinfer1::ILogger* logger_ = nullptr;
    nvinfer1::IErrorRecorder* recorder_ = nullptr;
};

// An object that callers see. `kind` is the public class's name.
class Object {
public:
    // Those that callers destroy are written down and have to go before their parents; those that belong to another go with it unseen.
    enum class Owner { caller, parent };

    Object(const char* kind, const void* seen, const Object* parent, const Voice& voice, Owner owner = Owner::caller);
    Object(const Object&) = delete;
    Object& operator=(const Object&) = delete;
    virtual ~Object();

    const std::string& name() const { return name_; }
    const Object* parent() const { return parent_; }
    Voice voice;

private:
    const void* seen_;
    const Object* parent_;
    Owner owner_;
    std::string name_;
};

// A call of a method, written down as it begins.
class Call {
public:
    Call(const Object* self, const char* kind, const char* method, std::initializer_list<std::string> arguments, bool can_fail);
    // Whether it was told to; said to the object's logger and recorder, or to those of who calls a function.
    bool fails() const;
    bool fails(const Voice& voice) const;

private:
    const Object* self_;
    std::string method_;
    int how_ = -1;
};

// ---- what tests set and ask -----------------------------------------------------------------------------------------------------------

struct Version {
    int major, minor, patch;
    int number() const { return major * 10000 + minor * 100 + patch; }
    std::string text() const;
    bool operator==(const Version& other) const { return number() == other.number(); }
};

Version version();
bool is_at_least(int major, int minor);
// The compute capability plans are built for and run on: 87, 110.
int sm();
bool is_endless();
bool is_refused(const std::string& op_type);
struct Executor {
    standin_execute execute;
    void* user;
};
Executor executor();
void fault(const std::string& text);
// The name of an object of ours that callers see at this address, or a number.
std::string pointer_name(const void* pointer);

// A reference to nothing: for what no test may touch.
struct Nothing {
    template <typename T>
    operator T&() const {
        alignas(64) static char memory[4096];
        return reinterpret_cast<T&>(memory);
    }
};
inline Nothing nothing() { return {}; }

std::string dims_text(const nvinfer1::Dims& dims);
std::string quoted(const std::string& text);

}  // namespace standin
