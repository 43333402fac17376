package admission

import (
	"bytes"
	"fmt"
	"os/exec"
	"strings"

	"sigs.k8s.io/yaml"

	"floatip.io/floatip/test/rig/process"
)

// kubectl runs kubectl in the tenant's namespace with a manifest as its input, and returns its output with what a
// person reads beside it, such as warnings.
func (n *tenant) kubectl(manifest string, args ...string) (string, error) {
	return n.person(manifest, append([]string{"KUBECTL"}, args...)...)
}

// mustKubectl fails the test on an error.
func (n *tenant) mustKubectl(manifest string, args ...string) string {
	n.t.Helper()
	out, err := n.kubectl(manifest, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// manifest is a VM in YAML with annotations.
func (n *tenant) manifest(name string, annotations map[string]string) string {
	n.t.Helper()
	text := strings.Replace(vmManifest, "  name: testvm\n", "  name: "+name+"\n", 1)
	if len(annotations) == 0 {
		return text
	}
	raw, err := yaml.Marshal(map[string]any{"annotations": annotations})
	if err != nil {
		n.t.Fatal(err)
	}
	indented := "  " + strings.ReplaceAll(strings.TrimSpace(string(raw)), "\n", "\n  ") + "\n"
	return strings.Replace(text, "spec:\n", indented+"spec:\n", 1)
}

// person runs a command line in which KUBECTL stands for kubectl and its flags, and returns both of its outputs.
func (n *tenant) person(input string, words ...string) (string, error) {
	var line []string
	for _, word := range words {
		if word == "KUBECTL" {
			line = append(line, strings.Fields(n.cluster.KubectlCommand())[2:]...)
			line = append(line, "--namespace="+n.ns)
			continue
		}
		line = append(line, word)
	}
	cmd := exec.CommandContext(n.ctx, line[0], line[1:]...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &out
	if err := process.Run(n.netns, cmd); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, out.String())
	}
	return out.String(), nil
}
