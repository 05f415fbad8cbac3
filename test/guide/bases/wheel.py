"""Makes a wheel of an installed package that is Python alone: wheel.py NAME DIRECTORY"""
import base64, hashlib, importlib.metadata, pathlib, sys, zipfile

name, directory = sys.argv[1:]
package = importlib.metadata.distribution(name)
where = pathlib.Path(package.locate_file(name))
info = f"{name}-{package.version}.dist-info"
scripts = "".join(f"{one.name} = {one.value}\n" for one in package.entry_points if one.group == "console_scripts")
files = {f"{name}/{path.relative_to(where)}": path.read_bytes() for path in sorted(where.rglob("*.py"))}
files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {package.version}\n".encode()
files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: berth\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}".encode()
digest = lambda data: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
record = "".join(f"{path},sha256={digest(data)},{len(data)}\n" for path, data in files.items())
files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

pathlib.Path(directory).mkdir()
with zipfile.ZipFile(f"{directory}/{name}-{package.version}-py3-none-any.whl", "w") as wheel:
    for path, data in files.items():
        wheel.writestr(path, data)
