package ipam

import (
	"fmt"
	"os"
	"testing"
)

// childEnv makes the test binary run one of the children, on the ledger at the path in childPathEnv.
const (
	childEnv     = "FLOATIP_IPAM_TEST_CHILD"
	childPathEnv = "FLOATIP_IPAM_TEST_PATH"
)

var children = map[string]func(path string) error{
	"writers":  runWriters,
	"sequence": runSequence,
	"hold":     runHold,
	"fill":     runFill,
	"volume":   runFillVolume,
	"doubt":    runDoubt,
}

func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv(childEnv)]; ok {
		if err := child(os.Getenv(childPathEnv)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
