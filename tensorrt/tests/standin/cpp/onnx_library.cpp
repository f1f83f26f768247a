// libnvonnxparser: only its factory; what it makes is in the stand-in for libnvinfer, which this library needs as the real one does.
#include <NvOnnxParser.h>

extern "C" void* standin_new_parser(void* network, void* logger, int version);

extern "C" __attribute__((visibility("default"))) void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) noexcept {
    return standin_new_parser(network, logger, version);
}

extern "C" __attribute__((visibility("default"))) int getNvOnnxParserVersion() noexcept { return NV_ONNX_PARSER_VERSION; }
