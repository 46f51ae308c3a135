package mem

import "runtime"

// Waiting returns how many wait for the load of that key. It lets others run, as
// tests call it until it is what they wait for.
func (l *Loader) Waiting(key string) int {
	runtime.Gosched()
	l.mu.Lock()
	defer l.mu.Unlock()
	if ld := l.loads[key]; ld != nil {
		return ld.waiting
	}
	return 0
}
