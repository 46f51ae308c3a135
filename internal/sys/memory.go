package sys

// MemoryBytes is the memory that processes can use: the machine's, or what the
// cgroup of this process is limited to if that is less. The error says that
// the system does not tell.
func MemoryBytes() (int64, error) { return memoryBytes() }
