package cloudinit

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// modules is where test/packages unpacks cloud-init's Python code.
const modules = "../../bin/packages/cloud-init/usr/lib/python3/dist-packages"

// outcome is what cloud-init made of user data (testdata/process.py).
type outcome struct {
	Parts []struct{ Type, Payload string }
	// Types are the content types that have a handler.
	Types []string
	// Schema is the complaint of "cloud-init schema" about the merged cloud-config.
	Schema string
	// Config is the cloud-config merged from all parts.
	Config map[string]any
	// Scripts, Boothooks and Files are contents by path; Files are what write_files wrote.
	Scripts, Boothooks, Files map[string]string
}

// python is Debian's own: another one would not find the packages that cloud-init imports.
const python = "/usr/bin/python3"

// cloudInitModules returns the directory of cloud-init's Python code.
func cloudInitModules(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(modules)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("FLOATIP_TEST_ROOT") == "1" {
			t.Fatalf("cloud-init is not unpacked, run make packages: %v", err)
		}
		t.Skipf("cloud-init is not unpacked, run make packages: %v", err)
	}
	return path
}

// cloudInit gives user data to the real cloud-init, which works below scratch.
func cloudInit(t *testing.T, scratch string, userData map[string][]byte) map[string]outcome {
	t.Helper()
	path := cloudInitModules(t)
	request, err := json.Marshal(map[string]any{"scratch": scratch, "userData": userData})
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), python, "-B", "testdata/process.py")
	command.Env = append(os.Environ(), "PYTHONPATH="+path)
	command.Stdin = bytes.NewReader(request)
	var complaints bytes.Buffer
	command.Stderr = &complaints
	answer, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, complaints.Bytes())
	}
	var outcomes map[string]outcome
	if err := json.Unmarshal(answer, &outcomes); err != nil {
		t.Fatalf("%v: %s%s", err, answer, complaints.Bytes())
	}
	return outcomes
}

// included is what the user data with #include point to.
const included = "#cloud-config\nwrite_files:\n- path: /etc/mine\n  content: mine\n"

// cloud-init itself finds the file in what Merge made, and finds everything of the user's as it was before.
func TestCloudInit(t *testing.T) {
	scratch := t.TempDir()
	if err := os.WriteFile(filepath.Join(scratch, "included"), []byte(included), 0o600); err != nil {
		t.Fatal(err)
	}
	userData := map[string][]byte{}
	for _, name := range extended {
		in := bytes.ReplaceAll(read(t, name+".in"), []byte("/SCRATCH"), []byte(scratch))
		merged, skipped := Merge(in, testFile)
		if skipped != ReasonNone {
			t.Fatalf("%s: %s", name, skipped)
		}
		userData["before-"+name], userData["after-"+name] = in, merged
	}
	outcomes := cloudInit(t, scratch, userData)
	for _, name := range extended {
		t.Run(name, func(t *testing.T) {
			wantOnlyFile(t, outcomes["before-"+name], outcomes["after-"+name])
		})
	}
}

// wantOnlyFile checks that the outcomes differ by testFile alone.
func wantOnlyFile(t *testing.T, before, after outcome) {
	t.Helper()
	if after.Schema != "" && before.Schema == "" {
		t.Errorf("cloud-init schema: %s", after.Schema)
	}
	config := before.Config
	entries, _ := config["write_files"].([]any)
	config["write_files"] = append(entries, map[string]any{"path": testFile.Path, "content": testFile.Content})
	if before.Files == nil {
		before.Files = map[string]string{}
	}
	before.Files[testFile.Path] = testFile.Content
	for what, pair := range map[string][2]any{
		"config":        {config, after.Config},
		"files":         {before.Files, after.Files},
		"scripts":       {before.Scripts, after.Scripts},
		"boothooks":     {before.Boothooks, after.Boothooks},
		"content types": {before.Types, after.Types},
	} {
		if diff := cmp.Diff(pair[0], pair[1]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	wantUserParts(t, before, after)
}

// wantUserParts checks that the user's parts come first and as they were, unless one cloud-config was extended.
func wantUserParts(t *testing.T, before, after outcome) {
	t.Helper()
	if len(after.Parts) == len(before.Parts) {
		if len(after.Parts) != 1 {
			t.Errorf("%d parts, and no part is floatip's", len(after.Parts))
		}
		return
	}
	if diff := cmp.Diff(before.Parts, after.Parts[:len(before.Parts)]); diff != "" {
		t.Errorf("the user's parts (-want +got):\n%s", diff)
	}
}

// The scripts, hooks and files that a person wrote are there: the comparison above would hold if both sides were empty.
func TestCloudInitKeepsEffect(t *testing.T) {
	userData := map[string][]byte{}
	for _, name := range []string{
		"archive", "boothook", "jinja", "jsonp", "list", "list-flow", "multipart", "part-handler", "script-utf8",
	} {
		userData[name], _ = Merge(read(t, name+".in"), testFile)
	}
	outcomes := cloudInit(t, t.TempDir(), userData)
	for name, content := range map[string]string{
		"archive": "mine", "jsonp": "mine", "multipart": "mine", "list-flow": "mine", "jinja": "nocloud",
		"list": "# kept, though it looks like a comment\n#!/bin/sh\n",
	} {
		if got := outcomes[name].Files["/etc/mine"]; got != content {
			t.Errorf("%s: /etc/mine has %q, want %q", name, got, content)
		}
	}
	if got := outcomes["list"].Config["runcmd"]; !cmp.Equal(got, []any{"touch /run/mine"}) {
		t.Errorf("list: runcmd %v", got)
	}
	if got := outcomes["boothook"].Boothooks["/part-001"]; !strings.HasPrefix(got, "#!/bin/sh\necho mine") {
		t.Errorf("boothook: %v", outcomes["boothook"].Boothooks)
	}
	if got := outcomes["script-utf8"].Scripts["/part-001"]; got != string(read(t, "script-utf8.in")) {
		t.Errorf("script-utf8: %v", outcomes["script-utf8"].Scripts)
	}
	if !slices.Contains(outcomes["part-handler"].Types, "text/x-mine") {
		t.Errorf("part-handler: handlers for %v", outcomes["part-handler"].Types)
	}
}

// The command that people check their user data with accepts a #cloud-config that was extended.
func TestCloudInitSchemaCommand(t *testing.T) {
	path := cloudInitModules(t)
	for _, name := range []string{"empty", "config", "list", "list-indented"} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", name+".want")
			command := exec.CommandContext(t.Context(), python, "-B", "-m", "cloudinit.cmd.main",
				"schema", "--config-file", file)
			command.Env = append(os.Environ(), "PYTHONPATH="+path)
			answer, err := command.CombinedOutput()
			if err != nil || !strings.HasPrefix(string(answer), "Valid") {
				t.Errorf("%v: %s", err, answer)
			}
		})
	}
}
