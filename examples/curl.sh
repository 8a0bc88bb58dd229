#!/bin/sh
# Ask the service with curl alone:  sh examples/curl.sh examples/images/7.png [URL]
set -eu

image=${1:?usage: curl.sh IMAGE [URL]}
url=${2:-http://127.0.0.1:8000}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

echo '# One image as the raw body'
curl --silent --show-error --fail-with-body --data-binary "@$image" \
  --header 'Content-Type: application/octet-stream' "$url/v1/classify?top_k=3"

printf '\n# Several images as parts of a form\n'
curl --silent --show-error --fail-with-body --form "image=@$image" --form "image=@$image" "$url/v1/classify?top_k=1"

printf '\n# Images as base64 in JSON\n'
{ printf '{"images": ["'; base64 < "$image" | tr -d '\n'; printf '"]}'; } |
  curl --silent --show-error --fail-with-body --data-binary @- \
    --header 'Content-Type: application/json' "$url/v1/classify?top_k=1"

printf '\n# Features as a NumPy archive\n'
curl --silent --show-error --fail-with-body --form "image=@$image" --header 'Accept: application/x-npz' \
  --output "$folder/features.npz" "$url/v1/features?outputs=embedding&outputs=logits"
echo "$(wc -c < "$folder/features.npz") bytes"

# An error is a JSON document too: --fail-with-body shows it, and ends with status 22.
echo '# What is wrong with an image that is none'
if echo 'not an image' | curl --silent --fail-with-body --data-binary @- \
  --header 'Content-Type: application/octet-stream' "$url/v1/classify"; then
  exit 1
fi
echo
