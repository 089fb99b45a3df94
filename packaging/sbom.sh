#!/bin/sh
# Lists what an image holds, as CycloneDX: `sbom.sh NAME VERSION`, called by the Containerfile. Debian's packages are read from
# /scan, Python's from /opt/venv. The agents' list, /sbom/agents.cdx.json, is there already if the image has agents.
set -eu
mkdir -p /sbom /scan/var/lib/apt
cp -r /var/lib/apt/lists /scan/var/lib/apt/
cd /sbom
/opt/sbom/bin/debsbom generate --root /scan --sbom-type cdx --distro-version "$(. /scan/etc/os-release; echo "$VERSION_ID")" --out debian \
  2>debian.log || { cat debian.log >&2; exit 1; }
# cyclonedx-py wants to know what the packages are installed for. `debsbom merge` refuses a list without it.
version=$(/opt/venv/bin/python -c 'from importlib.metadata import version; print(version("perdure"))')
printf '[project]\nname = "perdure"\nversion = "%s"\nlicense = "Apache-2.0"\n' "$version" >pyproject.toml
/opt/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-file python.cdx.json /opt/venv/bin/python
# shellcheck disable=SC2046 # a list that is not there is no word
/opt/sbom/bin/debsbom merge --sbom-type cdx --distro-name "$1" --distro-version "$2" --out sbom \
  debian.cdx.json python.cdx.json $(ls agents.cdx.json 2>/dev/null)
