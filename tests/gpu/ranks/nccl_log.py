"""What NCCL says itself: in its log of a process, the sends and receives that it was told to make."""
import os
import re

# Bytes of an element, by ncclDataType_t.
BYTES = (1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1)
CALL = re.compile(r"NCCL INFO (Send|Recv): .*?\bcount (\d+) datatype (\d+)\b")


class NcclLog:
    """The log of this process from now on; to be made before NCCL is loaded, which reads its environment once."""

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, f"nccl-{os.getpid()}.log")
        # A file name without % is taken as it is.
        os.environ.update({"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "COLL", "NCCL_DEBUG_FILE": self.path})
        self.at, self.calls = 0, 0

    def read(self):
        """Bytes (sent, received) by the calls since the last look."""
        if not os.path.exists(self.path):
            return 0, 0
        with open(self.path, encoding="utf-8", errors="replace") as file:
            file.seek(self.at)
            text = file.read()
            self.at = file.tell()
        moved = {"Send": 0, "Recv": 0}
        for what, count, kind in CALL.findall(text):
            moved[what] += int(count) * BYTES[int(kind)]
            self.calls += 1
        return moved["Send"], moved["Recv"]
