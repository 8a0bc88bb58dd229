#!/bin/sh
# Install locked requirements into /opt/serve, without what only installing, testing or exporting needs.
# usage: install_serving.sh SET [EXTRA...]     sets and extras are files of requirements/ without their .txt
# Wheels that the image's own stages built, and no lock has therefore, are taken from wheels/.
set -eu

environment=/opt/serve
python=$environment/bin/python

python3.11 -m venv "$environment"
for name in "$@"; do
    "$python" -m pip install --require-hashes --no-compile -r "requirements/$name.txt"
done
for wheel in wheels/*.whl; do
    [ ! -e "$wheel" ] || "$python" -m pip install --no-index --no-deps --no-compile "$wheel"
done
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -m pip uninstall -qy setuptools pip
rm -f "$environment"/bin/pip* "$environment"/bin/activate* "$environment"/bin/Activate.ps1

# The packages' own tests, and what ONNX Runtime has beside its runtime: converters, quantization, sample graphs, and
# the runtime once more for programs in C.
find "$site" -depth -type d -path '*/numpy/*' -name tests -exec rm -r {} +
for part in backend datasets quantization tools transformers; do
    rm -r "$site/onnxruntime/$part"
done
rm "$site"/onnxruntime/capi/libonnxruntime.so.*

# Of NVIDIA's libraries ONNX Runtime's CUDA provider is linked to cublas, cublasLt, cudart and curand; it opens cudnn,
# for convolutions, and nvrtc, and cudnn opens of its own parts what it needs. Not opened for our graphs:
#   cufft, cufftw   Fourier transforms, looked for when a graph has one
#   cudnn_adv       recurrent networks and attention of cuDNN's older interface
#   nvblas          stands in for a CPU's BLAS
# Nor is anything linked here, for which the static libraries are.
# docs/decisions/0018-images.md says how that was found out, and why nvJitLink and cudnn's other parts stay.
if [ "$1" = serve-cuda ]; then
    for library in cu13/lib/libcufft cu13/lib/libcufftw cu13/lib/libnvblas cudnn/lib/libcudnn_adv; do
        rm "$site/nvidia/$library".so*
    done
    find "$site/nvidia" -name '*.a' -exec rm {} +
fi

# By content, since copying need not keep the files' times.
"$python" -m compileall -q --invalidation-mode unchecked-hash "$site"
