{{- define "medianest.labels" -}}
app.kubernetes.io/name: medianest-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}
{{- define "medianest.selector" -}}
app.kubernetes.io/name: medianest-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{/* What the controller may do in a namespace that it watches. Of what its databases' pods need it holds nothing itself:
     it may only bind the fixed role below. */}}
{{- define "medianest.rules" -}}
- apiGroups: [medianest.io]
  resources: [medianestdatabases]
  verbs: [get, list, watch]
- apiGroups: [medianest.io]
  resources: [medianestbackups]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [medianest.io]
  resources: [medianestoperations]
  verbs: [get, list, watch, delete]
- apiGroups: [medianest.io]
  resources: [medianestdatabases/status, medianestbackups/status, medianestoperations/status]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [configmaps, secrets, services, serviceaccounts]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [endpoints]
  verbs: [get, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs, cronjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [{{ if .Values.namespaces }}roles{{ else }}clusterroles{{ end }}]
  resourceNames: [medianest-instance]
  verbs: [bind]
{{- end }}
{{/* What Patroni needs in the namespace of its database. */}}
{{- define "medianest.instanceRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, update]
- apiGroups: [""]
  resources: [endpoints]
  verbs: [get, list, watch, create, patch, update, delete]
{{- end }}
{{/* What people may do, one step after the other: look, take a backup, put one in the database's place. */}}
{{- define "medianest.viewerRules" -}}
- apiGroups: [medianest.io]
  resources: [medianestdatabases, medianestbackups, medianestoperations]
  verbs: [get, list, watch]
{{- end }}
{{- define "medianest.backupOperatorRules" -}}
- apiGroups: [medianest.io]
  resources: [medianestbackups]
  verbs: [create, delete]
{{- end }}
{{- define "medianest.restorerRules" -}}
- apiGroups: [medianest.io]
  resources: [medianestoperations]
  verbs: [create, delete]
{{- end }}
