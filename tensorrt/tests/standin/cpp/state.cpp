// What tests set and ask, from outside and from the environment.
#include "state.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "device.h"

namespace standin {
namespace {

std::string variable(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

std::vector<std::string> split(const std::string& text, char sign) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, sign);) {
        if (!part.empty()) parts.push_back(part);
    }
    return parts;
}

void append(const std::string& path, const std::string& line) {
    if (path.empty()) return;
    if (FILE* file = std::fopen(path.c_str(), "a")) {
        std::fprintf(file, "%s\n", line.c_str());
        std::fclose(file);
    }
}

size_t give(const std::vector<std::string>& lines, char* text, size_t capacity) {
    std::string all;
    for (const std::string& line : lines) all += line + "\n";
    if (text != nullptr) std::memcpy(text, all.data(), std::min(capacity, all.size()));
    return all.size();
}

// `IRuntime::deserializeCudaEngine:2:oom`; the method has two colons, its number follows one.
Failure read_failure(const std::string& text) {
    Failure failure{text, 1, STANDIN_ERROR};
    for (;;) {
        size_t at = failure.method.rfind(':');
        if (at == std::string::npos || at == 0 || failure.method[at - 1] == ':') return failure;
        std::string last = failure.method.substr(at + 1);
        failure.method.resize(at);
        if (last == "oom") {
            failure.how = STANDIN_OOM;
        } else if (last == "silent") {
            failure.how = STANDIN_SILENT;
        } else if (last != "error") {
            failure.in = std::strtoull(last.c_str(), nullptr, 10);
        }
    }
}

}  // namespace

State& state() {
    // Never destroyed: callers' static objects may outlive ours.
    static State* made = [] {
        State* state = new State;
        state->set_from_environment();
        return state;
    }();
    return *made;
}

void State::set_from_environment() {
    failures.clear();
    refused.clear();
    version = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH};
    executor = {nullptr, nullptr};
    std::string text = variable("STANDIN_VERSION");
    if (!text.empty()) std::sscanf(text.c_str(), "%d.%d.%d", &version.major, &version.minor, &version.patch);
    sm = std::atoi(variable("STANDIN_SM").c_str());
    is_endless = variable("STANDIN_ENDLESS") == "1";
    for (const std::string& failure : split(variable("STANDIN_FAIL"), ';')) failures.push_back(read_failure(failure));
    for (const std::string& op_type : split(variable("STANDIN_REFUSE"), ',')) refused.insert(op_type);
    record_path = variable("STANDIN_RECORD");
    faults_path = variable("STANDIN_FAULTS");
    std::string library = variable("STANDIN_EXECUTOR");
    if (library.empty()) return;
    void* opened = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    void* found = opened == nullptr ? nullptr : dlsym(opened, "standin_executor");
    if (found == nullptr) {
        std::fprintf(stderr, "STANDIN_EXECUTOR: %s\n", dlerror());
        std::abort();
    }
    executor = {reinterpret_cast<standin_execute>(found), nullptr};
}

void State::write(const std::string& line) {
    record.push_back(line);
    append(record_path, line);
}

void State::write_fault(const std::string& line) {
    faults.push_back(line);
    append(faults_path, line);
}

int State::how_to_fail(const std::string& method, bool can_fail) {
    int how = -1;
    for (Failure& failure : failures) {
        bool counts = failure.method.empty() ? can_fail : failure.method == method;
        if (!counts || failure.in == 0) continue;
        if (--failure.in == 0) how = failure.how;
    }
    return how;
}

Version version() {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().version;
}

std::string Version::text() const {
    return std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

bool is_at_least(int major, int minor) { return version().number() >= major * 10000 + minor * 100; }

int sm() {
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        if (state().sm != 0) return state().sm;
    }
    int found = device_sm();
    return found == 0 ? 90 : found;
}

bool is_endless() {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().is_endless;
}

bool is_refused(const std::string& op_type) {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().refused.count(op_type) != 0;
}

Executor executor() {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().executor;
}

void fault(const std::string& text) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().write_fault(text);
}

}  // namespace standin

using namespace standin;

EXPORTED void standin_fail(const char* method, uint64_t n, int32_t how) {
    std::lock_guard<std::mutex> lock(state().mutex);
    std::string name = method == nullptr ? "" : method;
    std::vector<Failure>& failures = state().failures;
    auto is_same = [&](const Failure& failure) { return failure.method == name; };
    failures.erase(std::remove_if(failures.begin(), failures.end(), is_same), failures.end());
    if (n != 0) failures.push_back({name, n, how});
}

EXPORTED uint64_t standin_num_pending(void) {
    std::lock_guard<std::mutex> lock(state().mutex);
    const std::vector<Failure>& failures = state().failures;
    return uint64_t(std::count_if(failures.begin(), failures.end(), [](const Failure& failure) { return failure.in != 0; }));
}

EXPORTED void standin_set_version(int32_t major, int32_t minor, int32_t patch) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().version = {major, minor, patch};
}

EXPORTED void standin_set_sm(int32_t sm) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().sm = sm;
}

EXPORTED void standin_set_endless(int32_t is_endless) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().is_endless = is_endless != 0;
}

EXPORTED void standin_refuse_operator(const char* op_type) {
    std::lock_guard<std::mutex> lock(state().mutex);
    if (op_type == nullptr) {
        state().refused.clear();
    } else {
        state().refused.insert(op_type);
    }
}

EXPORTED void standin_set_executor(standin_execute execute, void* user) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().executor = {execute, user};
}

EXPORTED void standin_reset(void) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().set_from_environment();
    state().record.clear();
    state().faults.clear();
    state().numbers.clear();
    state().created.clear();
}

EXPORTED size_t standin_record(char* text, size_t capacity) {
    std::lock_guard<std::mutex> lock(state().mutex);
    return give(state().record, text, capacity);
}

EXPORTED void standin_clear_record(void) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().record.clear();
    state().faults.clear();
    if (state().alive.empty()) {
        state().created.clear();
        state().numbers.clear();
    }
}

EXPORTED size_t standin_alive(char* text, size_t capacity) {
    std::lock_guard<std::mutex> lock(state().mutex);
    std::vector<std::string> names;
    for (const Object* object : state().alive) names.push_back(object->name());
    return give(names, text, capacity);
}

EXPORTED size_t standin_faults(char* text, size_t capacity) {
    std::lock_guard<std::mutex> lock(state().mutex);
    return give(state().faults, text, capacity);
}
