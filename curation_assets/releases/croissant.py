"""Metadata of a release for dataset search engines: `croissant.json` (MLCommons Croissant 1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curation_assets.releases.file_names import DATA_JSONL, DATA_PARQUET

CONFORMS = "http://mlcommons.org/croissant/1.0"

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

FIELDS = {
    "sample_id": ("sc:Text", "hash of the prompt, its images and the response"),
    "prompt_id": ("sc:Text", "hash of the prompt and its images"),
    "rank": ("sc:Integer", "1 is best"),
    "score": ("sc:Float", "the score it was ranked by"),
    "weight": ("sc:Float", "training weight"),
    "reason": ("sc:Text", "why the row was selected"),
    "source": ("sc:Text", "data set named by the row, else its source file"),
    "shard": ("sc:Text", "source file of the row"),
    "row": ("sc:Integer", "index of the row in the source file"),
    "response": ("sc:Text", "the response verbatim"),
}
"""Columns of the Parquet file listed as fields; nested columns (messages, steps) are only in the file."""

FORMATS = {DATA_PARQUET: "application/x-parquet", DATA_JSONL: "application/jsonlines"}


def croissant(manifest: Mapping[str, Any], license_url: str | None) -> dict[str, Any]:
    """Return the document.

    Args:
        manifest: manifest of the release.
        license_url: common licence of all sources, if there is one.
    """
    name = f"{manifest['subset']}-{manifest['number']}"
    method = manifest["parameters"]["method"]
    document: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS,
        "name": name,
        "description": f"{manifest['rows']} reasoning traces selected by {method['name']}: {method['summary']}.",
        "version": f"{manifest['number']}.0.0",
        "citeAs": method["source"],
        "keywords": ["reasoning", "data curation", method["name"]],
        "distribution": [_file(path, manifest["files"][path]) for path in FORMATS],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "description": "one trace per row, best first",
                "key": {"@id": "rows/sample_id"},
                "field": [_field(column, *facts) for column, facts in FIELDS.items()],
            }
        ],
    }
    if license_url is not None:
        document["license"] = license_url
    return document


def _file(path: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{facts['bytes']} B",
        "encodingFormat": FORMATS[path],
        "sha256": facts["sha256"],
    }


def _field(column: str, kind: str, meaning: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"rows/{column}",
        "name": column,
        "description": meaning,
        "dataType": kind,
        "source": {"fileObject": {"@id": DATA_PARQUET}, "extract": {"column": column}},
    }
