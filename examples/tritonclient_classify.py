"""Classify image files by the Open Inference Protocol.

Needs: pip install 'tritonclient[http]'

python examples/tritonclient_classify.py examples/images/7.png [more.png ...]
"""

import argparse
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput


def main() -> None:
    """Print the classes of each image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--url", default="127.0.0.1:8000", help="host and port, without a scheme")
    parser.add_argument("--model", help="name of the model (default: the first that is served)")
    parser.add_argument("--top-k", type=int, default=3)
    options = parser.parse_args()

    client = InferenceServerClient(options.url)
    model = options.model or client.get_model_repository_index()[0]["name"]
    # Whole files: the service decodes them, and prepares them as the model wants them.
    images = np.array([path.read_bytes() for path in options.images], dtype=np.object_)
    image = InferInput("image", list(images.shape), "BYTES")
    image.set_data_from_numpy(images)
    logits = InferRequestedOutput("logits", class_count=options.top_k)
    result = client.infer(model, [image], outputs=[logits])
    for path, classes in zip(options.images, result.as_numpy("logits"), strict=True):
        for each in classes:
            score, class_id, label = each.decode().split(":", 2)
            print(f"{path}: {label} (class {class_id}, logit {float(score):.3f})")


if __name__ == "__main__":
    main()
