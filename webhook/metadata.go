package webhook

import (
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kjson "sigs.k8s.io/json"
)

// metadata is what the hooks read of an object's metadata. The rest stays bytes: each field costs every request.
type metadata struct {
	Name              string                  `json:"name"`
	UID               types.UID               `json:"uid"`
	Annotations       map[string]string       `json:"annotations"`
	OwnerReferences   []metav1.OwnerReference `json:"ownerReferences"`
	DeletionTimestamp *time.Time              `json:"deletionTimestamp"`
	// ManagedFields is nil when the object has none.
	ManagedFields []fieldManager `json:"managedFields"`
}

// fieldManager is the part of a managedFields entry by which floatip finds its own.
type fieldManager struct {
	Manager string `json:"manager"`
}

// decode reads raw into v. Names of fields are matched exactly, as the API server matches them: encoding/json would
// take "Metadata" for "metadata".
func decode(raw []byte, v any) error {
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, v); err != nil {
		return fmt.Errorf("decode object: %w", err)
	}
	return nil
}

// errNoMetadata is the cause of refusing an object that no API server would send.
var errNoMetadata = errors.New("the object has no metadata")

// decodeMetadata reads the metadata of the object in raw and skips all else.
func decodeMetadata(raw []byte) (metadata, error) {
	if only, sure := topLevel(raw, "metadata"); sure && len(only) > 0 && only[0] == '{' {
		var m metadata
		if decode(only, &m) == nil {
			return m, nil
		} // else the error shall name the place in the whole
	}
	var object struct {
		Metadata *metadata `json:"metadata"`
	}
	if err := decode(raw, &object); err != nil {
		return metadata{}, err
	}
	if object.Metadata == nil {
		return metadata{}, errNoMetadata
	}
	return *object.Metadata, nil
}
