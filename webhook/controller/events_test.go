package controller

import (
	"strings"
	"testing"
	"unicode/utf8"

	"k8s.io/client-go/tools/events"

	"floatip.io/floatip"
	"floatip.io/floatip/ipam/v1alpha1"
)

// The API server takes notes of at most 1024 bytes (k8s.io/api events/v1, Event.Note): a longer one would not be told at all.
func TestLongEvents(t *testing.T) {
	recorder := events.NewFakeRecorder(3)
	told := Events{Recorder: recorder}
	text := strings.Repeat("ö", 2000)
	told.Warn(floatip.Owner{Namespace: "vms", Name: "a", UID: "uid-a"}, EventNotHeld, text)
	told.WarnNamespace("vms", EventNotHeld, text)
	told.about(&v1alpha1.FloatingIP{}, EventConflict, text)
	for range 3 {
		line := <-recorder.Events
		note := line[strings.LastIndex(line, " ")+1:]
		if len(note) > 1024 || len(note) < 1000 || !utf8.ValidString(note) || !strings.HasSuffix(note, "…") {
			t.Errorf("a note of %d bytes: %.40q", len(note), note)
		}
	}
}
