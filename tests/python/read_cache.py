"""What Python's huggingface_hub finds in the cache ($HF_HOME), as one JSON object: `warnings` (of
damaged repositories) and `repositories`: for "KIND ID" its `revisions` {COMMIT: [names]} and
`files`, each with the path that hf_hub_download gives for it at its name, without asking a hub.

needs: pip install huggingface_hub
usage: HF_HOME=DIR read_cache.py"""
import json

from huggingface_hub import hf_hub_download, scan_cache_dir

cache = scan_cache_dir()
found = {}
for repo in cache.repos:
    revisions, files = {}, {}
    for revision in repo.revisions:
        revisions[revision.commit_hash] = sorted(revision.refs)
        for file in sorted(revision.files, key=lambda file: file.file_name):
            name = str(file.file_path.relative_to(revision.snapshot_path))
            files[name] = hf_hub_download(repo.repo_id, name, repo_type=repo.repo_type,
                                          revision=sorted(revision.refs)[0], local_files_only=True)
    found[f"{repo.repo_type} {repo.repo_id}"] = dict(revisions=revisions, files=files)
print(json.dumps(dict(warnings=[str(warning) for warning in cache.warnings], repositories=found)))
