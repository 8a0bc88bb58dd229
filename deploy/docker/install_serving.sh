#!/bin/sh
# Install locked requirements into /opt/serve, without what only installing, testing or exporting needs.
# usage: install_serving.sh SET [EXTRA...]     sets and extras are files of requirements/ without their .txt
set -eu

environment=/opt/serve
python=$environment/bin/python

python3.11 -m venv "$environment"
for name in "$@"; do
    "$python" -m pip install --require-hashes --no-compile -r "requirements/$name.txt"
done
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -m pip uninstall -qy setuptools pip
rm -f "$environment"/bin/pip* "$environment"/bin/activate* "$environment"/bin/Activate.ps1

# The packages' own tests, and what ONNX Runtime has beside its runtime: converters, quantization, sample graphs.
find "$site" -depth -type d -path '*/numpy/*' -name tests -exec rm -r {} +
for part in backend datasets quantization tools transformers; do
    rm -rf "$site/onnxruntime/$part"
done

# By content, since copying need not keep the files' times.
"$python" -m compileall -q --invalidation-mode unchecked-hash "$site"
