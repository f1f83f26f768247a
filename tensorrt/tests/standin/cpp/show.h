// Arguments as text. Included where all enumerations have their `enumerator`.
#pragma once

#include "object.h"

namespace standin {

template <typename T>
std::string show(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
        return value ? "true" : "false";
    } else if constexpr (std::is_same_v<T, const char*> || std::is_same_v<T, char*>) {
        return value == nullptr ? "null" : quoted(value);
    } else if constexpr (std::is_enum_v<T>) {
        return enumerator(value);
    } else if constexpr (std::is_arithmetic_v<T>) {
        return std::to_string(value);
    } else if constexpr (std::is_pointer_v<T>) {
        return pointer_name(reinterpret_cast<const void*>(value));
    } else if constexpr (std::is_same_v<T, nvinfer1::Dims>) {
        return dims_text(value);
    } else if constexpr (std::is_same_v<T, nvinfer1::Weights>) {
        return "Weights(" + enumerator(value.type) + ", " + std::to_string(value.count) + ")";
    } else {
        return pointer_name(&value);
    }
}

}  // namespace standin
