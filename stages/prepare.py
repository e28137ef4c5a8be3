"""Draw, read or download the raw images and write the prepared set."""

from facevae.errors import reported_errors
from facevae.layout import PREPARED
from facevae.params import load_params
from facevae.preparation import prepare
from facevae.sources import open_source


def main() -> None:
    params = load_params()
    source = open_source(params.data, params.seed)
    manifest = prepare(source, params.data, params.seed, PREPARED)
    print(f"{PREPARED}: {manifest.num_images}, {len(manifest.bad_images)} bad image(s) left out")


if __name__ == "__main__":
    with reported_errors():
        main()
