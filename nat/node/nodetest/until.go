package nodetest

import "time"

// Until looks again and again until f is true, for limit at most, and reports whether it was. It is for what tells nobody
// that it has changed, such as a counter of the kernel; between two looks the processor is left to those who change it.
func Until(limit time.Duration, f func() bool) bool {
	over, again := time.After(limit), time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !f() {
		select {
		case <-over:
			return f()
		case <-again.C:
		}
	}
	return true
}
