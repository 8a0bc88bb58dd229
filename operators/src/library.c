// The operators as ONNX Runtime takes them: `RegisterCustomOps` is what `register_custom_ops_library` calls.
//
// Everything here follows from the table in operators.h. Each operator is there twice: computed on the CPU, and
// launched on NVIDIA's GPUs by cuda.c; the runtime chooses by the provider that a node is given to. Every failure is a
// status that names the operator and what is wrong with the node or its inputs; nothing ends the process.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"
#include "onnxruntime_c_api.h"
#include "operators.h"

#define TRY(call)                    \
  do {                               \
    OrtStatus* failed = (call);      \
    if (failed != NULL) return failed; \
  } while (0)

enum { FIRST_VERSION = 1, LAST_VERSION = 1 };

// The runtime hands `base` back to every callback: what follows it is found by that.
typedef struct {
  OrtCustomOp base;
  const Operator* what;
  bool is_cuda;
} Entry;

typedef struct {
  const Operator* what;
  Attributes attributes;
  Launcher* launcher;  // NULL on the CPU
} Kernel;

static const OrtApi* api;
static Entry entries[2 * OPERATORS];
static OrtCustomOpDomain* domain;
static pthread_once_t domain_once = PTHREAD_ONCE_INIT;

static const Operator* what_of(const OrtCustomOp* base) { return ((const Entry*)base)->what; }

static ONNXTensorElementDataType type_of_outputs(const Operator* what) {
  return what->gives_float32 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

static OrtStatus* wrong(const Operator* what, const char* message) {
  char text[MESSAGE_BYTES + 64];
  snprintf(text, sizeof text, "dat.%s: %s", what->name, message);
  return api->CreateStatus(ORT_INVALID_ARGUMENT, text);
}

// What a device or its driver lacks; more is to be said of that than of a shape.
static OrtStatus* failed_on_cuda(const Operator* what, const Report* why) {
  char text[REPORT_BYTES + 64];
  snprintf(text, sizeof text, "dat.%s: %s", what->name, why->text);
  return api->CreateStatus(ORT_FAIL, text);
}

static OrtStatus* wrong_rank(const Operator* what, int input, size_t rank) {
  char text[MESSAGE_BYTES];
  if (what->ranks[input] == 0)
    snprintf(text, sizeof text, "input %d has %zu dimensions, and should have 1 to %d", input, rank, MAX_RANK);
  else
    snprintf(text, sizeof text, "input %d has %zu dimensions, and should have %zu", input, rank, what->ranks[input]);
  return wrong(what, text);
}

// Read the shape of `info`, which stays the caller's; the ranks of the table are required.
static OrtStatus* read_shape(const Operator* what, int input, const OrtTensorTypeAndShapeInfo* info, Tensor* tensor) {
  TRY(api->GetDimensionsCount(info, &tensor->rank));
  bool fits = what->ranks[input] == 0 ? tensor->rank >= 1 && tensor->rank <= MAX_RANK
                                      : tensor->rank == what->ranks[input];
  if (!fits) return wrong_rank(what, input, tensor->rank);
  return api->GetDimensions(info, tensor->shape, tensor->rank);
}

static void shape_output(const Operator* what, const Attributes* attributes, int output, const Tensor* inputs,
                         Tensor* tensor) {
  const OutputShape* shape = &what->shapes[output];
  if (what->shape != NULL) {
    what->shape(attributes, inputs, tensor);
    return;
  }
  if (shape->rank == 0) {
    tensor->rank = inputs[0].rank;
    memcpy(tensor->shape, inputs[0].shape, sizeof tensor->shape);
    memcpy(tensor->names, inputs[0].names, sizeof tensor->names);
    return;
  }
  tensor->rank = shape->rank;
  for (size_t axis = 0; axis < shape->rank; axis++) {
    Dimension from = shape->dimensions[axis];
    int64_t length = inputs[from.input].shape[from.axis];
    tensor->shape[axis] = length < 0 ? -1 : length / from.divisor;
    tensor->names[axis] = from.divisor == 1 ? inputs[from.input].names[from.axis] : "";
  }
}

// Read what is known of the inputs' shapes when a graph is opened.
static OrtStatus* read_known_shapes(const OrtKernelInfo* info, const Operator* what, Tensor* inputs) {
  for (int number = 0; number < what->inputs; number++) {
    OrtTypeInfo* type = NULL;
    const OrtTensorTypeAndShapeInfo* shape = NULL;  // the type's own
    TRY(api->KernelInfo_GetInputTypeInfo(info, (size_t)number, &type));
    OrtStatus* read = api->CastTypeInfoToTensorInfo(type, &shape);
    if (read == NULL) read = read_shape(what, number, shape, &inputs[number]);
    api->ReleaseTypeInfo(type);
    if (read != NULL) return read;
  }
  return NULL;
}

// Check the inputs as far as they are known: where it is the batch alone that is not, any will do.
static OrtStatus* check_known_shapes(const Operator* what, const Attributes* attributes, const Tensor* inputs) {
  Tensor known[MAX_INPUTS];
  memcpy(known, inputs, sizeof known);
  for (int number = 0; number < what->inputs; number++)
    for (size_t axis = 0; axis < known[number].rank; axis++)
      if (known[number].shape[axis] < 0) {
        if (axis > 0 || known[number].rank < 2) return NULL;
        known[number].shape[axis] = 1;
      }
  char message[MESSAGE_BYTES] = "";
  return what->check(attributes, known, message) ? NULL : wrong(what, message);
}

// The device that the runtime puts the node's tensors on.
static OrtStatus* read_device(const OrtKernelInfo* info, int* device) {
  OrtAllocator* allocator = NULL;
  const OrtMemoryInfo* memory = NULL;  // the allocator's own
  TRY(api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
  OrtStatus* read = api->AllocatorGetInfo(allocator, &memory);
  if (read == NULL) read = api->MemoryInfoGetId(memory, device);
  api->ReleaseAllocator(allocator);
  return read;
}

static OrtStatus* prepare_launch(const OrtKernelInfo* info, Kernel* kernel) {
  Tensor inputs[MAX_INPUTS] = {0};
  int device = 0;
  TRY(read_known_shapes(info, kernel->what, inputs));
  TRY(check_known_shapes(kernel->what, &kernel->attributes, inputs));
  TRY(read_device(info, &device));
  Report why;
  clear(&why);
  kernel->launcher = create_launcher(kernel->what, &kernel->attributes, inputs, device, &why);
  return kernel->launcher == NULL ? failed_on_cuda(kernel->what, &why) : NULL;
}

static OrtStatus* ORT_API_CALL create(const OrtCustomOp* base, const OrtApi* its_api, const OrtKernelInfo* info,
                                      void** made) {
  (void)its_api;
  const Operator* what = what_of(base);
  Kernel kernel = {.what = what};
  for (int number = 0; number < MAX_ATTRIBUTES && what->attributes[number] != NULL; number++)
    TRY(api->KernelInfoGetAttribute_int64(info, what->attributes[number], &kernel.attributes.integers[number]));
  if (what->has_epsilon) TRY(api->KernelInfoGetAttribute_float(info, "epsilon", &kernel.attributes.epsilon));
  if (((const Entry*)base)->is_cuda) TRY(prepare_launch(info, &kernel));
  Kernel* kept = malloc(sizeof *kept);
  if (kept == NULL) {
    destroy_launcher(kernel.launcher);
    return wrong(what, "no memory for the kernel");
  }
  *kept = kernel;
  *made = kept;
  return NULL;
}

static void ORT_API_CALL destroy(void* made) {
  Kernel* kernel = made;
  destroy_launcher(kernel->launcher);
  free(kernel);
}

static OrtStatus* read_input(OrtKernelContext* context, const Operator* what, int number, Tensor* tensor) {
  const OrtValue* value = NULL;
  TRY(api->KernelContext_GetInput(context, (size_t)number, &value));
  OrtTensorTypeAndShapeInfo* info = NULL;
  TRY(api->GetTensorTypeAndShape(value, &info));
  OrtStatus* read = read_shape(what, number, info, tensor);
  api->ReleaseTensorTypeAndShapeInfo(info);
  if (read != NULL) return read;
  return api->GetTensorMutableData((OrtValue*)value, &tensor->data);  // the runtime has no call to read with
}

static OrtStatus* launch_kernel(const Kernel* kernel, OrtKernelContext* context, const Tensor* inputs,
                                const Tensor* outputs) {
  void* stream = NULL;
  TRY(api->KernelContext_GetGPUComputeStream(context, &stream));
  Report why;
  clear(&why);
  return launch(kernel->launcher, &kernel->attributes, inputs, outputs, stream, &why)
             ? NULL
             : failed_on_cuda(kernel->what, &why);
}

static bool is_empty(const Tensor* tensor) {
  for (size_t axis = 0; axis < tensor->rank; axis++)
    if (tensor->shape[axis] == 0) return true;
  return false;
}

static OrtStatus* ORT_API_CALL compute(void* made, OrtKernelContext* context) {
  const Kernel* kernel = made;
  const Operator* what = kernel->what;
  Tensor inputs[MAX_INPUTS] = {0}, outputs[MAX_OUTPUTS] = {0};
  for (int number = 0; number < what->inputs; number++) TRY(read_input(context, what, number, &inputs[number]));
  char message[MESSAGE_BYTES] = "";
  if (!what->check(&kernel->attributes, inputs, message)) return wrong(what, message);
  for (int number = 0; number < what->outputs; number++) {
    OrtValue* value = NULL;
    Tensor* output = &outputs[number];
    shape_output(what, &kernel->attributes, number, inputs, output);
    TRY(api->KernelContext_GetOutput(context, (size_t)number, output->shape, output->rank, &value));
    TRY(api->GetTensorMutableData(value, &output->data));
  }
  // A dimension of 0 lets others be as large as they like, which nothing that loops or allocates by them is made for.
  if (is_empty(&outputs[0])) return NULL;
  if (kernel->launcher != NULL) return launch_kernel(kernel, context, inputs, outputs);
  return what->compute(&kernel->attributes, inputs, outputs) ? NULL : wrong(what, "no memory to compute with");
}

// Tell the runtime an output's shape, unless a dimension has neither length nor name: it would take -1 for a length.
static OrtStatus* tell_shape(const Operator* what, OrtShapeInferContext* context, int number, Tensor* output) {
  for (size_t axis = 0; axis < output->rank; axis++)
    if (output->shape[axis] < 0 && output->names[axis][0] == '\0') return NULL;
  OrtTensorTypeAndShapeInfo* info = NULL;
  TRY(api->CreateTensorTypeAndShapeInfo(&info));
  OrtStatus* told = api->SetTensorElementType(info, type_of_outputs(what));
  if (told == NULL) told = api->SetDimensions(info, output->shape, output->rank);
  if (told == NULL) told = api->SetSymbolicDimensions(info, output->names, output->rank);
  if (told == NULL) told = api->ShapeInferContext_SetOutputTypeShape(context, (size_t)number, info);
  api->ReleaseTensorTypeAndShapeInfo(info);
  return told;
}

// Read the attributes that a shape follows from, before there is a kernel.
static OrtStatus* read_integers(const Operator* what, const OrtShapeInferContext* context, Attributes* attributes) {
  for (int number = 0; number < MAX_ATTRIBUTES && what->attributes[number] != NULL; number++) {
    const OrtOpAttr* attribute = NULL;  // the context's own
    size_t bytes = 0;
    int64_t* value = &attributes->integers[number];
    TRY(api->ShapeInferContext_GetAttribute(context, what->attributes[number], &attribute));
    TRY(api->ReadOpAttr(attribute, ORT_OP_ATTR_INT, value, sizeof *value, &bytes));
  }
  return NULL;
}

static OrtStatus* ORT_API_CALL infer_shapes(const OrtCustomOp* base, OrtShapeInferContext* context) {
  const Operator* what = what_of(base);
  Tensor inputs[MAX_INPUTS] = {0};
  Attributes attributes = {0};
  if (what->shape != NULL) TRY(read_integers(what, context, &attributes));
  for (int number = 0; number < what->inputs; number++) {
    Tensor* input = &inputs[number];
    OrtTensorTypeAndShapeInfo* info = NULL;  // the context's own
    TRY(api->ShapeInferContext_GetInputTypeShape(context, (size_t)number, &info));
    TRY(read_shape(what, number, info, input));
    TRY(api->GetSymbolicDimensions(info, input->names, input->rank));
  }
  for (int number = 0; number < what->outputs; number++) {
    Tensor output = {0};
    shape_output(what, &attributes, number, inputs, &output);
    TRY(tell_shape(what, context, number, &output));
  }
  return NULL;
}

static const char* ORT_API_CALL name(const OrtCustomOp* base) { return what_of(base)->name; }
static const char* ORT_API_CALL provider(const OrtCustomOp* base) {
  return ((const Entry*)base)->is_cuda ? "CUDAExecutionProvider" : "CPUExecutionProvider";
}
static size_t ORT_API_CALL input_count(const OrtCustomOp* base) { return (size_t)what_of(base)->inputs; }
static size_t ORT_API_CALL output_count(const OrtCustomOp* base) { return (size_t)what_of(base)->outputs; }

static ONNXTensorElementDataType ORT_API_CALL input_type(const OrtCustomOp* base, size_t number) {
  const Operator* what = what_of(base);
  if (what->is_uint8[number]) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  return what->is_float32[number] ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

static ONNXTensorElementDataType ORT_API_CALL output_type(const OrtCustomOp* base, size_t number) {
  (void)number;
  return type_of_outputs(what_of(base));
}

static OrtCustomOpInputOutputCharacteristic ORT_API_CALL required(const OrtCustomOp* base, size_t number) {
  (void)base, (void)number;
  return INPUT_OUTPUT_REQUIRED;
}

static OrtMemType ORT_API_CALL memory_type(const OrtCustomOp* base, size_t number) {
  (void)base, (void)number;
  return OrtMemTypeDefault;
}

static int ORT_API_CALL one(const OrtCustomOp* base) { (void)base; return 1; }
static int ORT_API_CALL first_version(const OrtCustomOp* base) { (void)base; return FIRST_VERSION; }
static int ORT_API_CALL last_version(const OrtCustomOp* base) { (void)base; return LAST_VERSION; }

static void describe(Entry* entry, const Operator* what, bool is_cuda) {
  entry->what = what;
  entry->is_cuda = is_cuda;
  entry->base = (OrtCustomOp){
      .version = ORT_API_VERSION,
      .GetName = name,
      .GetExecutionProviderType = provider,
      .GetInputTypeCount = input_count,
      .GetInputType = input_type,
      .GetInputCharacteristic = required,
      .GetInputMemoryType = memory_type,
      .GetOutputTypeCount = output_count,
      .GetOutputType = output_type,
      .GetOutputCharacteristic = required,
      .GetVariadicInputMinArity = one,
      .GetVariadicInputHomogeneity = one,
      .GetVariadicOutputMinArity = one,
      .GetVariadicOutputHomogeneity = one,
      .CreateKernelV2 = create,
      .KernelComputeV2 = compute,
      .KernelDestroy = destroy,
      .InferOutputShapeFn = infer_shapes,
      .GetStartVersion = first_version,
      .GetEndVersion = last_version,
  };
}

// Once: sessions of every thread share the domain, which lasts as long as the library.
static void make_domain(void) {
  OrtCustomOpDomain* made = NULL;
  OrtStatus* failed = api->CreateCustomOpDomain("dat", &made);
  for (int number = 0; failed == NULL && number < 2 * OPERATORS; number++) {
    describe(&entries[number], &dat_operators[number / 2], number % 2 == 1);
    failed = api->CustomOpDomain_Add(made, &entries[number].base);
  }
  if (failed != NULL)
    api->ReleaseStatus(failed);
  else
    domain = made;
}

__attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                const OrtApiBase* base);

OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* offered = base->GetApi(ORT_API_VERSION);
  if (offered == NULL) {  // a runtime older than the interface, which every one has had since 1.0
    const OrtApi* oldest = base->GetApi(1);
    return oldest == NULL ? NULL : oldest->CreateStatus(ORT_FAIL, "the operators of dat want a newer ONNX Runtime");
  }
  api = offered;
  pthread_once(&domain_once, make_domain);
  if (domain == NULL) return api->CreateStatus(ORT_FAIL, "the domain of the operators of dat could not be made");
  return api->AddCustomOpDomain(options, domain);
}
