package main

import (
	"testing"
	"time"
)

// What is written as how long ago lies in the past, and what is written as a time is that time.
func FuzzMoment(f *testing.F) {
	for _, text := range []string{"", "24h", "7d", "-1h", "2026-01-02", "2026-01-02T03:04:05Z", "99999d", "1h30", "d"} {
		f.Add(text)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := moment(text, now)
		switch {
		case err != nil || text == "":
			if !got.IsZero() {
				t.Errorf("%q: %s, %v", text, got, err)
			}
		case !got.After(now):
		default: // a time to come, as a time
			if _, err := time.Parse(time.RFC3339, text); err != nil {
				if _, err := time.Parse(time.DateOnly, text); err != nil {
					t.Errorf("%q lies in the future: %s", text, got)
				}
			}
		}
	})
}
