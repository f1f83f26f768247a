// Fast DDS 2.x as a remote-controlled peer: raw CDR bytes on topics and services, as rmw_fastrtps puts them on the wire.
//
// `peer DOMAIN loopback|all`, then one command a line on standard input; bytes are hexadecimal and begin with the
// encapsulation header:
//
//   write NAME TOPIC TYPE DEPTH              a publisher
//   read NAME TOPIC TYPE DEPTH RELIABILITY DURABILITY
//                                            a subscriber, `reliable` or `best_effort`, `volatile` or `transient_local`; prints
//                                            `data NAME BYTES` for every message
//   client NAME REQUEST-TOPIC REPLY-TOPIC REQUEST-TYPE REPLY-TYPE DEPTH
//   wait NAME                                until it is matched, a client both ways; prints `matched NAME`
//   count NAME                               prints `counted NAME NUMBER`: how many it is matched with, a client the fewer way
//   send NAME BYTES                          a message, or a client's request
//   call NAME BYTES                          `wait` and `send` with nothing in between, as a client fresh from its start does
//
// A client prints `sent NAME SEQUENCE` and, for every reply to itself, `reply NAME SEQUENCE MILLISECONDS BYTES`, the time since
// the request was written. `error TEXT` if a command was wrong. Ends with standard input.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <fastdds/dds/domain/DomainParticipant.hpp>
#include <fastdds/dds/domain/DomainParticipantFactory.hpp>
#include <fastdds/dds/publisher/DataWriter.hpp>
#include <fastdds/dds/publisher/DataWriterListener.hpp>
#include <fastdds/dds/publisher/Publisher.hpp>
#include <fastdds/dds/subscriber/DataReader.hpp>
#include <fastdds/dds/subscriber/DataReaderListener.hpp>
#include <fastdds/dds/subscriber/SampleInfo.hpp>
#include <fastdds/dds/subscriber/Subscriber.hpp>
#include <fastdds/dds/topic/Topic.hpp>
#include <fastdds/dds/topic/TopicDataType.hpp>
#include <fastdds/dds/topic/TypeSupport.hpp>
#include <fastdds/rtps/transport/UDPv4TransportDescriptor.h>
#include <fastrtps/utils/IPLocator.h>

namespace fdds = eprosima::fastdds::dds;
namespace rtps = eprosima::fastrtps::rtps;
using Clock = std::chrono::steady_clock;
using Bytes = std::vector<uint8_t>;

// Longest message; buffers grow to what is needed.
constexpr uint32_t max_message_bytes = 4 * 1024 * 1024;

// Messages as they are, encapsulation header included, under any ROS type name.
class RawType : public fdds::TopicDataType {
public:
    explicit RawType(const std::string& name) {
        setName(name.c_str());
        m_typeSize = max_message_bytes;
        m_isGetKeyDefined = false;
        // Without generated code there is no type description to announce.
        auto_fill_type_information(false);
        auto_fill_type_object(false);
    }

    bool serialize(void* data, rtps::SerializedPayload_t* payload) override {
        const auto& bytes = *static_cast<Bytes*>(data);
        if (bytes.size() > payload->max_size) {
            return false;
        }
        payload->encapsulation = CDR_LE;
        payload->length = static_cast<uint32_t>(bytes.size());
        std::memcpy(payload->data, bytes.data(), bytes.size());
        return true;
    }

    bool deserialize(rtps::SerializedPayload_t* payload, void* data) override {
        static_cast<Bytes*>(data)->assign(payload->data, payload->data + payload->length);
        return true;
    }

    std::function<uint32_t()> getSerializedSizeProvider(void* data) override {
        return [data] { return static_cast<uint32_t>(static_cast<Bytes*>(data)->size()); };
    }

    void* createData() override { return new Bytes; }
    void deleteData(void* data) override { delete static_cast<Bytes*>(data); }
    bool getKey(void*, rtps::InstanceHandle_t*, bool) override { return false; }
};

// One line at a time: listeners run on threads of their own.
void say(const std::string& line) {
    static std::mutex lock;
    std::lock_guard<std::mutex> guard(lock);
    std::cout << line << std::endl;
}

template <class T>
T* made(T* entity, const char* what) {
    if (entity == nullptr) {
        throw std::runtime_error(std::string("cannot create ") + what);
    }
    return entity;
}

std::string to_hex(const Bytes& bytes) {
    static const char digits[] = "0123456789abcdef";
    std::string text;
    text.reserve(2 * bytes.size());
    for (uint8_t byte : bytes) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

Bytes from_hex(const std::string& text) {
    Bytes bytes;
    bytes.reserve(text.size() / 2);
    for (size_t i = 0; i + 1 < text.size(); i += 2) {
        bytes.push_back(static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
    }
    return bytes;
}

// Counts the other ends and can be waited for.
class Matches {
public:
    void change(int by) {
        std::lock_guard<std::mutex> guard(lock_);
        count_ += by;
        changed_.notify_all();
    }

    int count() {
        std::lock_guard<std::mutex> guard(lock_);
        return count_;
    }

    void wait() {
        std::unique_lock<std::mutex> guard(lock_);
        changed_.wait(guard, [this] { return count_ > 0; });
    }

private:
    std::mutex lock_;
    std::condition_variable changed_;
    int count_ = 0;
};

// A topic, or a client: what can be waited for and written to.
class Endpoint {
public:
    virtual ~Endpoint() = default;
    virtual void wait() = 0;
    virtual int count() = 0;
    virtual void send(Bytes bytes) = 0;
};

// What a subscriber asks for.
struct ReaderQos {
    int depth;
    bool is_reliable;
    // Wants what was published before it came.
    bool is_late;
};

class Peer {
public:
    Peer(uint32_t domain, bool loopback_only) {
        fdds::DomainParticipantQos qos;
        qos.name("interop");
        if (loopback_only) {
            use_loopback_only(qos);
        } else {
            use_udp(qos);
        }
        auto* factory = fdds::DomainParticipantFactory::get_instance();
        participant_ = made(factory->create_participant(domain, qos), "the participant");
        publisher_ = made(participant_->create_publisher(fdds::PUBLISHER_QOS_DEFAULT), "a publisher");
        subscriber_ = made(participant_->create_subscriber(fdds::SUBSCRIBER_QOS_DEFAULT), "a subscriber");
    }

    ~Peer() {
        participant_->delete_contained_entities();
        fdds::DomainParticipantFactory::get_instance()->delete_participant(participant_);
    }

    // As rmw_fastrtps_cpp: reliable, volatile, written in the caller's thread.
    fdds::DataWriter* writer(const std::string& topic, const std::string& type, int depth, fdds::DataWriterListener* listener) {
        auto qos = fdds::DATAWRITER_QOS_DEFAULT;
        qos.reliability().kind = fdds::RELIABLE_RELIABILITY_QOS;
        qos.durability().kind = fdds::VOLATILE_DURABILITY_QOS;
        qos.history().kind = fdds::KEEP_LAST_HISTORY_QOS;
        qos.history().depth = depth;
        // Without keys there is one instance; 400 messages of it by default.
        qos.resource_limits().max_samples_per_instance = std::max(depth, 400);
        qos.publish_mode().kind = fdds::SYNCHRONOUS_PUBLISH_MODE;
        qos.endpoint().history_memory_policy = rtps::DYNAMIC_RESERVE_MEMORY_MODE;
        qos.data_sharing().off();
        return made(publisher_->create_datawriter(topic_of(topic, type), qos, listener), "a writer");
    }

    fdds::DataReader* reader(const std::string& topic, const std::string& type, const ReaderQos& asked, fdds::DataReaderListener* listener) {
        auto qos = fdds::DATAREADER_QOS_DEFAULT;
        qos.reliability().kind = asked.is_reliable ? fdds::RELIABLE_RELIABILITY_QOS : fdds::BEST_EFFORT_RELIABILITY_QOS;
        qos.durability().kind = asked.is_late ? fdds::TRANSIENT_LOCAL_DURABILITY_QOS : fdds::VOLATILE_DURABILITY_QOS;
        qos.history().kind = fdds::KEEP_LAST_HISTORY_QOS;
        qos.history().depth = asked.depth;
        qos.resource_limits().max_samples_per_instance = std::max(asked.depth, 400);
        qos.endpoint().history_memory_policy = rtps::DYNAMIC_RESERVE_MEMORY_MODE;
        qos.data_sharing().off();
        return made(subscriber_->create_datareader(topic_of(topic, type), qos, listener), "a reader");
    }

private:
    fdds::Topic* topic_of(const std::string& name, const std::string& type) {
        if (auto* known = participant_->lookup_topicdescription(name)) {
            return static_cast<fdds::Topic*>(known);
        }
        fdds::TypeSupport support(new RawType(type));
        participant_->register_type(support);
        return made(participant_->create_topic(name, type, fdds::TOPIC_QOS_DEFAULT), "a topic");
    }

    // No shared memory: the node has none, and nothing of it is to be left on the machine.
    static std::shared_ptr<eprosima::fastdds::rtps::UDPv4TransportDescriptor> use_udp(fdds::DomainParticipantQos& qos) {
        auto udp = std::make_shared<eprosima::fastdds::rtps::UDPv4TransportDescriptor>();
        qos.transport().use_builtin_transports = false;
        qos.transport().user_transports.push_back(udp);
        return udp;
    }

    // As rmw_fastrtps with ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST.
    static void use_loopback_only(fdds::DomainParticipantQos& qos) {
        auto udp = use_udp(qos);
        udp->maxInitialPeersRange = 32;
        udp->interfaceWhiteList.emplace_back("127.0.0.1");
        auto& builtin = qos.wire_protocol().builtin;
        builtin.metatrafficMulticastLocatorList.clear();
        builtin.metatrafficUnicastLocatorList.push_back(rtps::Locator_t());
        rtps::Locator_t localhost;
        rtps::IPLocator::setIPv4(localhost, "127.0.0.1");
        builtin.initialPeersList.push_back(localhost);
    }

    fdds::DomainParticipant* participant_;
    fdds::Publisher* publisher_;
    fdds::Subscriber* subscriber_;
};

class Publication : public Endpoint, fdds::DataWriterListener {
public:
    Publication(Peer& peer, const std::string& topic, const std::string& type, int depth)
        : writer_(peer.writer(topic, type, depth, this)) {}

    void wait() override { matches_.wait(); }
    int count() override { return matches_.count(); }

    void send(Bytes bytes) override {
        if (!writer_->write(&bytes)) {
            throw std::runtime_error("cannot write");
        }
    }

private:
    void on_publication_matched(fdds::DataWriter*, const fdds::PublicationMatchedStatus& status) override {
        matches_.change(status.current_count_change);
    }

    Matches matches_;
    fdds::DataWriter* writer_;
};

class Subscription : public Endpoint, fdds::DataReaderListener {
public:
    Subscription(Peer& peer, std::string name, const std::string& topic, const std::string& type, const ReaderQos& qos)
        : name_(std::move(name)), reader_(peer.reader(topic, type, qos, this)) {}

    void wait() override { matches_.wait(); }
    int count() override { return matches_.count(); }
    void send(Bytes) override { throw std::runtime_error("a subscriber cannot send"); }

private:
    void on_subscription_matched(fdds::DataReader*, const fdds::SubscriptionMatchedStatus& status) override {
        matches_.change(status.current_count_change);
    }

    void on_data_available(fdds::DataReader* reader) override {
        Bytes bytes;
        fdds::SampleInfo info;
        while (reader->take_next_sample(&bytes, &info) == ReturnCode_t::RETCODE_OK) {
            if (info.valid_data) {
                say("data " + name_ + " " + to_hex(bytes));
            }
        }
    }

    std::string name_;
    Matches matches_;
    fdds::DataReader* reader_;
};

// A service client as rmw_fastrtps_cpp's: the request says who reads its reply, the reply which request it is to.
class Client : public Endpoint, fdds::DataWriterListener, fdds::DataReaderListener {
public:
    Client(Peer& peer, std::string name, const std::vector<std::string>& topics_and_types, int depth)
        : name_(std::move(name)),
          reader_(peer.reader(topics_and_types[1], topics_and_types[3], {depth, true, false}, this)),
          writer_(peer.writer(topics_and_types[0], topics_and_types[2], depth, this)) {}

    void wait() override {
        servers_.wait();
        replies_.wait();
    }

    int count() override { return std::min(servers_.count(), replies_.count()); }

    void send(Bytes bytes) override {
        rtps::WriteParams params;
        params.related_sample_identity().writer_guid(reader_->guid());
        std::lock_guard<std::mutex> guard(lock_);
        auto now = Clock::now();
        if (!writer_->write(&bytes, params)) {
            throw std::runtime_error("cannot write");
        }
        auto sequence = params.sample_identity().sequence_number().to64long();
        sent_[sequence] = now;
        say("sent " + name_ + " " + std::to_string(sequence));
    }

private:
    void on_publication_matched(fdds::DataWriter*, const fdds::PublicationMatchedStatus& status) override {
        servers_.change(status.current_count_change);
    }

    void on_subscription_matched(fdds::DataReader*, const fdds::SubscriptionMatchedStatus& status) override {
        replies_.change(status.current_count_change);
    }

    void on_data_available(fdds::DataReader* reader) override {
        Bytes bytes;
        fdds::SampleInfo info;
        while (reader->take_next_sample(&bytes, &info) == ReturnCode_t::RETCODE_OK) {
            const auto& related = info.related_sample_identity;
            bool own = related.writer_guid() == reader->guid();
            if (info.valid_data && own) {
                report(related.sequence_number().to64long(), bytes);
            }
        }
    }

    void report(int64_t sequence, const Bytes& bytes) {
        auto now = Clock::now();
        std::lock_guard<std::mutex> guard(lock_);
        auto sent = sent_.find(sequence);
        double elapsed_ms = sent == sent_.end() ? -1 : std::chrono::duration<double, std::milli>(now - sent->second).count();
        std::ostringstream line;
        line << "reply " << name_ << " " << sequence << " " << elapsed_ms << " " << to_hex(bytes);
        say(line.str());
    }

    std::string name_;
    Matches servers_, replies_;
    std::mutex lock_;
    std::map<int64_t, Clock::time_point> sent_;
    fdds::DataReader* reader_;
    fdds::DataWriter* writer_;
};

class Session {
public:
    Session(uint32_t domain, bool loopback_only) : peer_(domain, loopback_only) {}

    void obey(const std::string& line) {
        std::istringstream words(line);
        std::string command, name;
        words >> command >> name;
        if (command == "write") {
            auto rest = take(words, 3);
            endpoints_[name] = std::make_unique<Publication>(peer_, rest[0], rest[1], std::stoi(rest[2]));
        } else if (command == "read") {
            auto rest = take(words, 5);
            ReaderQos qos{std::stoi(rest[2]), rest[3] == "reliable", rest[4] == "transient_local"};
            endpoints_[name] = std::make_unique<Subscription>(peer_, name, rest[0], rest[1], qos);
        } else if (command == "client") {
            auto rest = take(words, 5);
            endpoints_[name] = std::make_unique<Client>(peer_, name, rest, std::stoi(rest[4]));
        } else if (command == "wait") {
            endpoints_.at(name)->wait();
            say("matched " + name);
        } else if (command == "count") {
            say("counted " + name + " " + std::to_string(endpoints_.at(name)->count()));
        } else if (command == "send") {
            endpoints_.at(name)->send(from_hex(take(words, 1)[0]));
        } else if (command == "call") {
            auto bytes = from_hex(take(words, 1)[0]);
            endpoints_.at(name)->wait();
            endpoints_.at(name)->send(std::move(bytes));
        } else {
            throw std::runtime_error("no such command: " + command);
        }
    }

private:
    static std::vector<std::string> take(std::istringstream& words, size_t num) {
        std::vector<std::string> taken(num);
        for (auto& word : taken) {
            if (!(words >> word)) {
                throw std::runtime_error("words missing");
            }
        }
        return taken;
    }

    // Destroyed last: the entities' listeners are the endpoints, so the participant goes after nothing calls them.
    std::map<std::string, std::unique_ptr<Endpoint>> endpoints_;
    Peer peer_;
};

int main(int argc, char** argv) {
    if (argc != 3) {
        std::cerr << "usage: peer DOMAIN loopback|all" << std::endl;
        return 2;
    }
    try {
        Session session(static_cast<uint32_t>(std::stoul(argv[1])), std::string(argv[2]) == "loopback");
        say("ready");
        for (std::string line; std::getline(std::cin, line);) {
            try {
                session.obey(line);
            } catch (const std::exception& error) {
                say(std::string("error ") + error.what());
            }
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
    return 0;
}
