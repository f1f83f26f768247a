// What the whole library shares.
#pragma once

#include <cstdio>
#include <map>
#include <set>

#include "object.h"

namespace standin {

struct Failure {
    std::string method;  // of any if empty
    uint64_t in;         // counts down to 1
    int how;
};

// All of it is used with `mutex` held.
struct State {
    std::mutex mutex;
    std::vector<std::string> record;
    std::vector<std::string> faults;
    std::map<const void*, std::string> names;
    std::map<const void*, size_t> numbers;
    std::map<std::string, int> created;
    std::vector<const Object*> alive;
    std::vector<Failure> failures;
    std::set<std::string> refused;
    Version version = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH};
    int sm = 0;
    bool is_endless = false;
    Executor executor = {nullptr, nullptr};
    std::string record_path;
    std::string faults_path;

    int next_number(const std::string& kind) { return ++created[kind]; }
    void write(const std::string& line);
    void write_fault(const std::string& line);
    // How the call fails; -1 if it does not.
    int how_to_fail(const std::string& method, bool can_fail);
    // As the environment says.
    void set_from_environment();
};

State& state();

}  // namespace standin
